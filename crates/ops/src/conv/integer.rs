//! Convolution of 8-bit tensors: their types, zero points and layouts around [`Int8Weights`].

use std::borrow::Cow;

use attar_graph::Node;
use attar_tensor::{DType, Element, Tensor};

use super::int8::{Int8Job, Int8Weights, Output, Outputs};
use super::layout::{to_channels_first, to_channels_last};
use super::{Shape, last, output_shape};
use crate::geometry::Axis;
use crate::kernels::sums::Levels;
use crate::{OpError, Pool};

/// What flips i8 to the u8 that is 128 more.
pub(crate) const FLIP: u8 = 0x80;

/// The zero point of an 8-bit tensor, as one of u8: that of i8 moves up by 128 with its values.
///
/// # Errors
/// Another type, or more than one element.
pub(crate) fn zero_of_bytes(zero: &Tensor, index: usize) -> Result<u8, OpError> {
    let levels = crate::quantized::byte_levels(zero, index)?;
    let flip = if zero.dtype() == DType::I8 { FLIP } else { 0 };
    match levels {
        [level] => Ok(level ^ flip),
        _ => Err(OpError::value("the zero point", zero.shape(), "a scalar")),
    }
}

/// 8-bit weights off their zero points: none, one, or one per output.
///
/// # Errors
/// Weights that are not 8-bit, zero points that do not fit them.
pub(crate) fn centred(
    w: &Tensor,
    zero: Option<&Tensor>,
    [index, zero_index]: [usize; 2],
) -> Result<Vec<i16>, OpError> {
    let wide = |tensor: &Tensor, index: usize| match tensor.dtype() {
        DType::I8 => Ok(tensor.values::<i8>().iter().map(|&w| i16::from(w)).collect()),
        DType::U8 => Ok(tensor.values::<u8>().iter().map(|&w| i16::from(w)).collect::<Vec<i16>>()),
        found => Err(OpError::DType { index, found }),
    };
    let mut values = wide(w, index)?;
    let outputs = w.shape().first().copied().unwrap_or(0);
    let each = values.len() / outputs.max(1);
    if let Some(zero) = zero {
        let zeros = wide(zero, zero_index)?;
        if zero.dtype() != w.dtype() || (zeros.len() != 1 && zeros.len() != outputs) {
            return Err(OpError::shapes(&[outputs], zero.shape()));
        }
        for (o, values) in values.chunks_exact_mut(each.max(1)).enumerate() {
            values.iter_mut().for_each(|w| *w -= zeros[o % zeros.len()]);
        }
    }
    Ok(values)
}

/// Weights of a node, packed for sums that become `T`.
///
/// # Errors
/// As [`centred`], and weights that are none of a convolution.
pub(crate) fn packed<T: Output>(
    node: &Node,
    w: &Tensor,
    zero: Option<&Tensor>,
    indices: [usize; 2],
) -> Result<Int8Weights, OpError> {
    Int8Weights::new::<T>(node, &centred(w, zero, indices)?, w.shape())
}

/// A convolution with all that is known of it.
pub(crate) struct Job<'a, T> {
    pub(crate) weights: &'a Int8Weights,
    pub(crate) outputs: &'a Outputs,
    /// Of u8.
    pub(crate) x_zero: u8,
    pub(crate) levels: Levels,
    pub(crate) is_channels_last: bool,
    /// What is done to each finished part of the output, channels last, by its place.
    pub(crate) after: &'a (dyn Fn(usize, &mut [T]) + Sync),
}

/// Convolves `x`, u8 or i8.
///
/// # Errors
/// An input that does not fit the weights.
pub(crate) fn convolve<T: Output + Element>(
    pool: &Pool,
    x: &Tensor,
    job: &Job<T>,
) -> Result<Tensor, OpError> {
    let weights = job.weights;
    let shape = Shape::new(x.shape(), job.is_channels_last);
    let channels = weights.shape[1].checked_mul(weights.group);
    if x.rank() != weights.shape.len() || Some(shape.channels) != channels {
        return Err(OpError::shapes(x.shape(), &weights.shape));
    }
    let mut axes = weights.geometry.axes(shape.spatial)?;
    let sizes = axes.iter().map(|axis| axis.output);
    let output = output_shape(shape.batch, weights.shape[0], sizes, job.is_channels_last)?;
    if axes.len() == 1 {
        axes.insert(0, Axis::UNIT);
    }
    let x_last = if job.is_channels_last { x.clone() } else { to_channels_last(pool, x) };
    let levels = match x.dtype() {
        DType::U8 => Cow::Borrowed(x_last.slice::<u8>()),
        DType::I8 => x_last.slice::<i8>().iter().map(|&x| x as u8 ^ FLIP).collect(),
        found => return Err(OpError::DType { index: 0, found }),
    };
    let mut y = pool.tensor(T::DTYPE, &last(&output, job.is_channels_last));
    let run = Int8Job {
        x: &levels,
        x_zero: job.x_zero,
        batch: shape.batch,
        axes: &axes,
        outputs: job.outputs,
        levels: job.levels,
        pool,
    };
    weights.run(y.slice_mut::<T>(), &run, job.after);
    if job.is_channels_last {
        return Ok(y);
    }
    drop(levels);
    pool.recycle(x_last);
    let first = to_channels_first(pool, &y);
    pool.recycle(y);
    Ok(first)
}
