//! `MeanVarianceNormalization` (opset 9): y = (x − mean) / (√variance + 10⁻⁹) over the axes.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::broadcast::{Loops, broadcast_strides};
use crate::gradient::gradient;
use crate::real::by_real;
use crate::row_math::RowMath;
use crate::squeeze::resolve_axes;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct MeanVarianceNormalization;

/// Added to the deviation.
const EPSILON: f64 = 1e-9;

impl Operator for MeanVarianceNormalization {
    fn op_type(&self) -> &'static str {
        "MeanVarianceNormalization"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    /// With the deviation σ, s = σ + 10⁻⁹ and y of x, the means over what was normalized together:
    /// dx = (dy − mean dy − y·s/σ·mean(dy·y))/s.
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let axes = axes(node)?;
        gradient(Reads::NOTHING.input(0), move |run| {
            let mut dx = run.take_gradient();
            let x = run.input(0)?;
            let axes = resolve_axes(&axes, x.rank())?;
            back(dx.slice_mut::<f32>(), x, &axes);
            Ok(vec![Some(dx.into())])
        })
    }

    fn widens_half(&self) -> bool {
        true
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        if let Some(rank) = x.rank() {
            resolve_axes(&axes(node)?, rank)?;
        }
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let axes = axes(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let axes = resolve_axes(&axes, x.rank())?;
            by_real!(x, 0, T => Ok(vec![normalize::<T>(run, x, &axes)]))
        }))
    }
}

fn axes(node: &Node) -> Result<Vec<i64>, OpError> {
    Ok(node.ints("axes")?.map_or_else(|| vec![0, 2, 3], <[i64]>::to_vec))
}

fn normalize<T: RowMath>(run: &Run, x: &Tensor, axes: &[usize]) -> Tensor {
    let mut y = run.pool.tensor(x.dtype(), x.shape());
    if x.element_count() == 0 {
        return y;
    }
    // The last axes, where all of them are normalized over, make one row.
    let leading = (0..x.rank()).rev().find(|axis| !axes.contains(axis)).map_or(0, |axis| axis + 1);
    let row_size: usize = x.shape()[leading..].iter().product();
    let outer = &x.shape()[..leading];
    let kept: Vec<usize> = (outer.iter().enumerate())
        .map(|(axis, &size)| if axes.contains(&axis) { 1 } else { size })
        .collect();
    let strides = broadcast_strides(&kept, outer);
    let group_of = |row: usize| -> usize {
        let (mut rest, mut group) = (row, 0);
        for (&size, stride) in outer.iter().zip(&strides).rev() {
            group += rest % size * stride;
            rest /= size;
        }
        group
    };
    let groups: usize = kept.iter().product();
    let count = T::of((x.element_count() / groups) as f64);
    let rows = || x.slice::<T>().chunks_exact(row_size).enumerate();
    let mut means = vec![T::ZERO; groups];
    rows().for_each(|(row, x)| means[group_of(row)] += T::sum(x));
    means.iter_mut().for_each(|mean| *mean = *mean / count);
    let mut factors = vec![T::ZERO; groups];
    for (row, x) in rows() {
        let group = group_of(row);
        factors[group] += T::squares(x, means[group]);
    }
    for factor in &mut factors {
        *factor = T::ONE / ((*factor / count).sqrt() + T::of(EPSILON));
    }
    for ((row, x), out) in rows().zip(y.slice_mut::<T>().chunks_exact_mut(row_size)) {
        let group = group_of(row);
        T::affine(out, x, means[group], factors[group], T::ZERO);
    }
    y
}

/// Makes dx of dy.
fn back(dy: &mut [f32], x: &Tensor, axes: &[usize]) {
    #[derive(Clone, Copy, Default)]
    struct Group {
        mean: f64,
        variance: f64,
        dy: f64,
        product: f64,
    }
    let kept: Vec<usize> = (x.shape().iter().enumerate())
        .map(|(axis, &size)| if axes.contains(&axis) { 1 } else { size })
        .collect();
    let mut groups = vec![Group::default(); kept.iter().product()];
    let count = x.element_count().checked_div(groups.len()).unwrap_or(0).max(1) as f64;
    let loops = Loops::new([&kept], x.shape());
    let ([stride], inner) = (loops.inner_strides(), loops.inner_size().max(1));
    let x = x.slice::<f32>();
    let mut each = |visit: &dyn Fn(&mut Group, f64, &mut f32), dy: &mut [f32]| {
        let mut rows = x.chunks_exact(inner).zip(dy.chunks_exact_mut(inner));
        loops.for_each_row(|[at]| {
            let Some((x, dy)) = rows.next() else { return };
            for (i, (&x, dy)) in x.iter().zip(dy).enumerate() {
                visit(&mut groups[at + i * stride], f64::from(x), dy);
            }
        });
    };
    each(&|group, x, _| group.mean += x / count, dy);
    each(&|group, x, _| group.variance += (x - group.mean) * (x - group.mean) / count, dy);
    let normalized = |group: &Group, x: f64| (x - group.mean) / (group.variance.sqrt() + EPSILON);
    each(
        &|group, x, dy| {
            group.dy += f64::from(*dy) / count;
            group.product += f64::from(*dy) * normalized(group, x) / count;
        },
        dy,
    );
    each(
        &|group, x, dy| {
            let deviation = group.variance.sqrt();
            let scale = deviation + EPSILON;
            // Without deviation every y is 0.
            let ratio = if deviation == 0.0 { 0.0 } else { scale / deviation };
            let centred = f64::from(*dy) - group.dy;
            *dy = ((centred - normalized(group, x) * ratio * group.product) / scale) as f32;
        },
        dy,
    );
}
