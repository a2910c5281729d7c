//! `MeanVarianceNormalization` (opset 9): y = (x − mean) / (√variance + 10⁻⁹) over the axes.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::broadcast::broadcast_strides;
use crate::real::by_real;
use crate::row_math::RowMath;
use crate::squeeze::resolve_axes;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct MeanVarianceNormalization;

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
        *factor = T::ONE / ((*factor / count).sqrt() + T::of(1e-9));
    }
    for ((row, x), out) in rows().zip(y.slice_mut::<T>().chunks_exact_mut(row_size)) {
        let group = group_of(row);
        T::affine(out, x, means[group], factors[group], T::ZERO);
    }
    y
}
