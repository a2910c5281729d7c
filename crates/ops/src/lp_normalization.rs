//! `LpNormalization` (opset 1): y = x / (Σ |x|ᵖ)^(1/p) along an axis, p 1 or 2; where the norm is
//! 0, y is 0.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::fact::resolve_axis;
use crate::gradient::gradient;
use crate::kernels::for_rows;
use crate::real::by_real;
use crate::row_math::RowMath;
use crate::rows::AxisView;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct LpNormalization;

impl Operator for LpNormalization {
    fn op_type(&self) -> &'static str {
        "LpNormalization"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    /// With the norm n and y = x/n: dx = (dy − s·Σ dy·y)/n, s = y for p 2 and sign x for p 1.
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let (axis, p) = (node.int_or("axis", -1)?, node.int_or("p", 2)?);
        gradient(Reads::NOTHING.input(0), move |run| {
            let mut dx = run.take_gradient();
            let x = run.input(0)?.slice::<f32>();
            let AxisView { size, inner } = AxisView::new(run.shape(0), axis)?;
            for_rows(dx.slice_mut::<f32>(), size * inner, |first, blocks| {
                let x = x[first * size * inner..].chunks_exact(size * inner);
                for (dy, x) in blocks.chunks_exact_mut(size * inner).zip(x) {
                    (0..inner).for_each(|column| back(dy, x, column, inner, p));
                }
            });
            Ok(vec![Some(dx.into())])
        })
    }

    fn widens_half(&self) -> bool {
        true
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let (axis, p) = (node.int_or("axis", -1)?, node.int_or("p", 2)?);
        if !(1..=2).contains(&p) {
            return Err(OpError::value("p", p, "1 or 2"));
        }
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let axis = resolve_axis(axis, x.rank())
                .ok_or_else(|| OpError::value("axis", axis, format!("below {}", x.rank())))?;
            by_real!(x, 0, T => Ok(vec![normalize::<T>(run, x, axis, p)]))
        }))
    }
}

fn normalize<T: RowMath>(run: &Run, x: &Tensor, axis: usize, p: i64) -> Tensor {
    let mut y = run.pool.tensor(x.dtype(), x.shape());
    if x.element_count() == 0 {
        return y;
    }
    let size = x.shape()[axis];
    let inner: usize = x.shape()[axis + 1..].iter().product();
    let factor_of = |sum: T| {
        let norm = if p == 1 { sum } else { sum.sqrt() };
        if norm == T::ZERO { T::ZERO } else { T::ONE / norm }
    };
    let mut factors = vec![T::ZERO; inner];
    let blocks = y.slice_mut::<T>().chunks_exact_mut(size * inner);
    for (out, x) in blocks.zip(x.slice::<T>().chunks_exact(size * inner)) {
        if inner == 1 {
            let sum = match p {
                1 => x.iter().fold(T::ZERO, |sum, x| sum + x.abs()),
                _ => T::squares(x, T::ZERO),
            };
            T::affine(out, x, T::ZERO, factor_of(sum), T::ZERO);
            continue;
        }
        factors.fill(T::ZERO);
        for row in x.chunks_exact(inner) {
            for (sum, &x) in factors.iter_mut().zip(row) {
                *sum += if p == 1 { x.abs() } else { x * x };
            }
        }
        factors.iter_mut().for_each(|factor| *factor = factor_of(*factor));
        for (out, row) in out.chunks_exact_mut(inner).zip(x.chunks_exact(inner)) {
            for ((out, &x), &factor) in out.iter_mut().zip(row).zip(&factors) {
                *out = x * factor;
            }
        }
    }
    y
}

/// Makes dx of dy, of one line of a block.
fn back(dy: &mut [f32], x: &[f32], column: usize, inner: usize, p: i64) {
    let line = || x[column..].iter().step_by(inner).map(|&x| f64::from(x));
    let sum: f64 = line().map(|x| if p == 1 { x.abs() } else { x * x }).sum();
    let norm = if p == 1 { sum } else { sum.sqrt() };
    let products = line().zip(dy[column..].iter().step_by(inner));
    let product: f64 = products.map(|(x, &dy)| x * f64::from(dy)).sum();
    for (dy, x) in dy[column..].iter_mut().step_by(inner).zip(line()) {
        let slope = if p == 1 { if x == 0.0 { 0.0 } else { x.signum() } } else { x / norm };
        let dx = (f64::from(*dy) - slope * product / norm) / norm;
        *dy = if norm == 0.0 { 0.0 } else { dx as f32 };
    }
}
