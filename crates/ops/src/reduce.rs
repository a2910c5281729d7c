//! Reductions over axes. Axes are an attribute at first, an input from opset 13 (`ReduceSum`) or
//! 18 (the others).

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::kernels::{elementwise, normalize};
use crate::squeeze::{axes_of, resolve_axes};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

#[derive(Clone, Copy)]
enum Reduction {
    Sum,
    Mean,
    L2,
    Max,
    Min,
}

macro_rules! reductions {
    ($($op:ident, $reduction:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                1..=2
            }

            fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                infer(node, inputs)
            }

            fn kernel(
                &self,
                node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let node = node.clone();
                Ok(Box::new(move |run: &mut Run| reduce(run, &node, $reduction)))
            }
        }
    )*};
}

reductions! {
    ReduceL2, Reduction::L2;
    ReduceMax, Reduction::Max;
    ReduceMean, Reduction::Mean;
    ReduceMin, Reduction::Min;
    ReduceSum, Reduction::Sum;
}

/// The reduced axes of a value of `rank`: those given, or all, or none when asked so.
fn reduced_axes(node: &Node, given: Option<Vec<i64>>, rank: usize) -> Result<Vec<usize>, OpError> {
    match axes_of(node, given)? {
        Some(axes) if !axes.is_empty() => resolve_axes(&axes, rank),
        _ if node.int_or("noop_with_empty_axes", 0)? != 0 => Ok(Vec::new()),
        _ => Ok((0..rank).collect()),
    }
}

fn infer(node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    let x = required(inputs, 0)?;
    let given = inputs.get(1).copied().flatten();
    let known = given.and_then(Fact::known_elements);
    let Some(shape) = x.shape.as_ref().filter(|_| given.is_none() || known.is_some()) else {
        return Ok(vec![Fact::unranked(x.dtype)]);
    };
    let axes = reduced_axes(node, known, shape.len())?;
    let keeps = node.int_or("keepdims", 1)? != 0;
    let dims = (0..shape.len()).filter_map(|axis| match axes.contains(&axis) {
        true if keeps => Some(Dim::Known(1)),
        true => None,
        false => Some(shape[axis].clone()),
    });
    Ok(vec![Fact::new(x.dtype, dims.collect())])
}

fn reduce(run: &mut Run, node: &Node, reduction: Reduction) -> Result<Vec<Tensor>, OpError> {
    let x = run.input(0)?;
    let axes = reduced_axes(node, run.optional(1).and_then(Tensor::to_i64), x.rank())?;
    let keeps = node.int_or("keepdims", 1)? != 0;
    let kept: Vec<usize> =
        x.shape().iter().enumerate().map(|(a, &n)| if axes.contains(&a) { 1 } else { n }).collect();
    let shape: Vec<usize> =
        (0..x.rank()).filter(|axis| keeps || !axes.contains(axis)).map(|axis| kept[axis]).collect();
    if axes.is_empty() {
        return Ok(vec![x.clone()]);
    }
    let is_suffix = axes.iter().rev().zip((0..x.rank()).rev()).all(|(&axis, last)| axis == last);
    if x.dtype() == DType::F32 && is_suffix {
        let mut y = run.pool.tensor(DType::F32, &shape);
        let row: usize = axes.iter().map(|&axis| x.shape()[axis]).product();
        reduce_rows(y.slice_mut::<f32>(), x.slice::<f32>(), row, reduction);
        return Ok(vec![y]);
    }
    if x.dtype() == DType::F32
        && axes.len() == 1
        && matches!(reduction, Reduction::Sum | Reduction::Mean)
    {
        let mut y = run.pool.tensor(DType::F32, &shape);
        let size = x.shape()[axes[0]];
        let inner: usize = x.shape()[axes[0] + 1..].iter().product();
        sum_columns(y.slice_mut::<f32>(), x.slice::<f32>(), size, inner);
        if matches!(reduction, Reduction::Mean) {
            let divisor = elementwise::Operand::Scalar(size as f32);
            let sums = y.slice::<f32>().to_vec();
            elementwise::div(y.slice_mut::<f32>(), elementwise::Operand::Row(&sums), divisor);
        }
        return Ok(vec![y]);
    }
    reduce_any(x, &axes, &kept, &shape, reduction).map(|y| vec![y])
}

/// Rows that lie together, each to one value.
fn reduce_rows(y: &mut [f32], x: &[f32], row_size: usize, reduction: Reduction) {
    for (index, y) in y.iter_mut().enumerate() {
        let row = &x[index * row_size..(index + 1) * row_size];
        *y = match reduction {
            Reduction::Sum => normalize::sum_row(row),
            Reduction::Mean => normalize::sum_row(row) / row_size as f32,
            Reduction::L2 => normalize::sum_squares_row(row).sqrt(),
            Reduction::Max => elementwise::min_max(row).1,
            Reduction::Min => elementwise::min_max(row).0,
        };
    }
}

/// Sums over the middle axis of [outer, size, inner], one term after the other: zeros appended by
/// padding change nothing.
fn sum_columns(y: &mut [f32], x: &[f32], size: usize, inner: usize) {
    y.fill(0.0);
    if x.is_empty() {
        return;
    }
    for (y, block) in y.chunks_exact_mut(inner).zip(x.chunks_exact(size * inner)) {
        for row in block.chunks_exact(inner) {
            elementwise::add_assign(y, row);
        }
    }
}

/// Any axes and any numeric type, by way of f64 or i64.
fn reduce_any(
    x: &Tensor,
    axes: &[usize],
    kept: &[usize],
    shape: &[usize],
    reduction: Reduction,
) -> Result<Tensor, OpError> {
    let error = OpError::DType { index: 0, found: x.dtype() };
    let values = x.to_f64().ok_or(error)?;
    let strides = crate::broadcast::broadcast_strides(kept, x.shape());
    let initial = match reduction {
        Reduction::Max => f64::NEG_INFINITY,
        Reduction::Min => f64::INFINITY,
        _ => 0.0,
    };
    let mut results = vec![initial; kept.iter().product()];
    let mut index = vec![0_usize; x.rank()];
    for value in values {
        let at: usize = index.iter().zip(&strides).map(|(i, stride)| i * stride).sum();
        let result = &mut results[at];
        *result = match reduction {
            Reduction::Sum | Reduction::Mean => *result + value,
            Reduction::L2 => *result + value * value,
            Reduction::Max => result.max(value),
            Reduction::Min => result.min(value),
        };
        for axis in (0..x.rank()).rev() {
            index[axis] += 1;
            if index[axis] < x.shape()[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    let count: usize = axes.iter().map(|&axis| x.shape()[axis]).product();
    for result in &mut results {
        match reduction {
            Reduction::Mean => *result /= count as f64,
            Reduction::L2 => *result = result.sqrt(),
            _ => {}
        }
    }
    let found = x.dtype();
    Tensor::new(shape, &results).converted(found).map_err(|_| OpError::DType { index: 0, found })
}
