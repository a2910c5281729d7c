//! `LpNormalization` (opset 1): y = x / (Σ |x|ᵖ)^(1/p) along an axis, p 1 or 2; where the norm is
//! 0, y is 0.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::fact::resolve_axis;
use crate::real::by_real;
use crate::row_math::RowMath;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct LpNormalization;

impl Operator for LpNormalization {
    fn op_type(&self) -> &'static str {
        "LpNormalization"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
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
