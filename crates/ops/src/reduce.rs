//! Reductions over axes. Axes are an attribute at first, an input from opset 13 (`ReduceSum`) or
//! 18 (the others). Integers are reduced in their own type and wrap; of no elements come 0, 1 for
//! the product, and the ends of the type for its extremes.

pub(crate) mod fold;
mod gradient;

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::broadcast::Loops;
use crate::channels::{Channels, Port, Tensors, input, output};
use crate::number::{Number, by_number};
use crate::squeeze::{axes_of, resolve_axes};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};
use fold::fold;

#[derive(Clone, Copy, PartialEq)]
enum Reduction {
    L1,
    L2,
    LogSum,
    LogSumExp,
    Max,
    Mean,
    Min,
    Prod,
    Sum,
    SumSquare,
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

            fn channels(&self, node: &Node, tensors: &$crate::channels::Tensors) -> Option<$crate::channels::Channels> {
                channels(node, tensors)
            }

            fn kernel(
                &self,
                node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let node = node.clone();
                Ok(Box::new(move |run: &mut Run| reduce(run, &node, $reduction)))
            }

            fn gradient(
                &self,
                node: &Node,
                _: &Training,
            ) -> Result<Box<dyn Gradient>, OpError> {
                gradient::gradient_of(node, $reduction)
            }

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}

reductions! {
    ReduceL1, Reduction::L1;
    ReduceL2, Reduction::L2;
    ReduceLogSum, Reduction::LogSum;
    ReduceLogSumExp, Reduction::LogSumExp;
    ReduceMax, Reduction::Max;
    ReduceMean, Reduction::Mean;
    ReduceMin, Reduction::Min;
    ReduceProd, Reduction::Prod;
    ReduceSum, Reduction::Sum;
    ReduceSumSquare, Reduction::SumSquare;
}

/// The reduced axes of a value of `rank`: those given, or all, or none when asked so.
fn reduced_axes(node: &Node, given: Option<Vec<i64>>, rank: usize) -> Result<Vec<usize>, OpError> {
    match axes_of(node, given)? {
        Some(axes) if !axes.is_empty() => resolve_axes(&axes, rank),
        _ if node.int_or("noop_with_empty_axes", 0)? != 0 => Ok(Vec::new()),
        _ => Ok((0..rank).collect()),
    }
}

/// Axes that are not reduced pass. What is reduced stays whole: a mean divides by its size, and
/// what was added before a sum is no zero.
fn channels(node: &Node, tensors: &Tensors) -> Option<Channels> {
    let rank = tensors.rank(Port::Input(0))?;
    let given = match tensors.inputs.get(1).copied().flatten() {
        Some(_) => Some(tensors.integers(1)?),
        None => None,
    };
    let axes = reduced_axes(node, given, rank).ok()?;
    let keeps = node.int_or("keepdims", 1).ok()? != 0;
    let mut channels = Channels::default();
    let mut to = 0;
    for axis in 0..rank {
        let is_reduced = axes.contains(&axis);
        if !is_reduced {
            channels.tie(tensors, input(0, axis), output(0, to));
        }
        to += usize::from(keeps || !is_reduced);
    }
    Some(channels)
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
    let count: usize = axes.iter().map(|&axis| x.shape()[axis]).product();
    let loops = Loops::new([&kept], x.shape());
    let mut y = run.pool.tensor(x.dtype(), &shape);
    match x.dtype() {
        DType::F32 => {
            let (y, x) = (y.slice_mut::<f32>(), x.slice::<f32>());
            if !reduce_f32(y, x, &loops, count, reduction) {
                reduce_to(y, x, &loops, count, reduction);
            }
        }
        DType::Bool => match reduction {
            Reduction::Max => {
                fold(y.slice_mut(), x.slice::<u8>(), &loops, &fold::Max, |any| any);
            }
            Reduction::Min => {
                // Of none, the least is true.
                fold(y.slice_mut(), x.slice::<u8>(), &loops, &fold::Min, |all: u8| all.min(1));
            }
            _ => return Err(OpError::DType { index: 0, found: DType::Bool }),
        },
        dtype => by_number!(dtype, T => {
            reduce_to(y.slice_mut::<T>(), x.slice::<T>(), &loops, count, reduction);
        }, found => return Err(OpError::DType { index: 0, found })),
    }
    Ok(vec![y])
}

fn reduce_to<T: Number>(
    y: &mut [T],
    x: &[T],
    loops: &Loops<1>,
    count: usize,
    reduction: Reduction,
) {
    let by_f64 = |value: fn(f64) -> f64| move |x: T| T::from_f64(value(x.as_f64()));
    match reduction {
        Reduction::L1 => fold(y, x, loops, &fold::Magnitudes, |sum| sum),
        Reduction::L2 => fold(y, x, loops, &fold::Squares, by_f64(f64::sqrt)),
        Reduction::LogSum => fold(y, x, loops, &fold::Sum, by_f64(f64::ln)),
        Reduction::LogSumExp => {
            fold(y, x, loops, &fold::Exponentials, |(max, sum)| T::from_f64(max + sum.ln()));
        }
        Reduction::Max => fold(y, x, loops, &fold::Max, |max| max),
        Reduction::Mean => {
            fold(y, x, loops, &fold::Sum, |sum: T| sum.over(T::from_f64(count as f64)));
        }
        Reduction::Min => fold(y, x, loops, &fold::Min, |min| min),
        Reduction::Prod => fold(y, x, loops, &fold::Product, |product| product),
        Reduction::Sum => fold(y, x, loops, &fold::Sum, |sum| sum),
        Reduction::SumSquare => fold(y, x, loops, &fold::Squares, |sum| sum),
    }
}

/// With vector code, if there is any for the reduction.
fn reduce_f32(
    y: &mut [f32],
    x: &[f32],
    loops: &Loops<1>,
    count: usize,
    reduction: Reduction,
) -> bool {
    match reduction {
        Reduction::L2 => fold(y, x, loops, &fold::F32Squares, f32::sqrt),
        Reduction::Max => fold(y, x, loops, &fold::F32Max, |max| max),
        Reduction::Mean => fold(y, x, loops, &fold::F32Sum, |sum| sum / count as f32),
        Reduction::Sum => fold(y, x, loops, &fold::F32Sum, |sum| sum),
        Reduction::SumSquare => fold(y, x, loops, &fold::F32Squares, |sum| sum),
        _ => return false,
    }
    true
}
