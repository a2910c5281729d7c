//! Operators that read or write elements by index.

mod compress;
mod gather_elements;
mod gather_nd;
mod non_max_suppression;
mod non_zero;
mod one_hot;
mod reduction;
mod reverse_sequence;
mod scatter_elements;
mod scatter_nd;
mod tensor_scatter;
mod top_k;
mod unique;

pub(crate) use compress::Compress;
pub(crate) use gather_elements::GatherElements;
pub(crate) use gather_nd::GatherND;
pub(crate) use non_max_suppression::NonMaxSuppression;
pub(crate) use non_zero::NonZero;
pub(crate) use one_hot::OneHot;
pub(crate) use reduction::Reducible;
pub(crate) use reverse_sequence::ReverseSequence;
pub(crate) use scatter_elements::ScatterElements;
pub(crate) use scatter_nd::ScatterND;
pub(crate) use tensor_scatter::TensorScatter;
pub(crate) use top_k::TopK;
pub(crate) use unique::Unique;

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::fact::resolve_axis;
use crate::{OpError, Run};

/// The attribute `axis` as an index below `rank`.
pub(crate) fn axis_of(node: &Node, default: i64, rank: usize) -> Result<usize, OpError> {
    let axis = node.int_or("axis", default)?;
    resolve_axis(axis, rank)
        .ok_or_else(|| OpError::value("axis", axis, format!("below rank {rank}")))
}

/// The integers of an input.
pub(crate) fn integers(run: &Run, index: usize) -> Result<Vec<i64>, OpError> {
    integers_of(run.input(index)?, index)
}

pub(crate) fn integers_of(tensor: &Tensor, index: usize) -> Result<Vec<i64>, OpError> {
    tensor.to_i64().ok_or(OpError::DType { index, found: tensor.dtype() })
}

/// An index counted from the end when negative.
pub(crate) fn bounded(index: i64, size: usize) -> Result<usize, OpError> {
    resolve_axis(index, size)
        .ok_or_else(|| OpError::value("an index", index, format!("within −{size}..{size}")))
}

/// Steps along each axis, in elements.
pub(crate) fn strides_of(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// For an index tensor of the rank of `shape`: where in `shape` each element points, its own place
/// with the coordinate along `axis` replaced.
fn positions_along(
    shape: &[usize],
    axis: usize,
    indices: &[i64],
    indices_shape: &[usize],
) -> Result<Vec<usize>, OpError> {
    let rank = shape.len();
    let fits =
        indices_shape.len() == rank && (0..rank).all(|i| i == axis || indices_shape[i] <= shape[i]);
    if !fits {
        return Err(OpError::shapes(shape, indices_shape));
    }
    let mut strides = strides_of(shape);
    let along = std::mem::take(&mut strides[axis]);
    let (mut place, mut start) = (vec![0; rank], 0);
    let mut positions = Vec::with_capacity(indices.len());
    for &index in indices {
        positions.push(start + bounded(index, shape[axis])? * along);
        for i in (0..rank).rev() {
            place[i] += 1;
            start += strides[i];
            if place[i] < indices_shape[i] {
                break;
            }
            start -= strides[i] * place[i];
            place[i] = 0;
        }
    }
    Ok(positions)
}

/// Blocks that an index tensor of shape `[batch…, …, k]` points at.
struct Blocks {
    /// First element of each.
    starts: Vec<usize>,
    /// Elements of each.
    size: usize,
}

/// The last axis of the indices holds `k` coordinates, of the axes after the batch axes.
fn blocks(
    shape: &[usize],
    batch_dims: usize,
    indices: &[i64],
    indices_shape: &[usize],
) -> Result<Blocks, OpError> {
    let error = || OpError::shapes(shape, indices_shape);
    let Some((&k, outer)) = indices_shape.split_last() else { return Err(error()) };
    let batches = shape.get(..batch_dims).ok_or_else(error)?;
    if outer.get(..batch_dims) != Some(batches) || k > shape.len() - batch_dims {
        return Err(error());
    }
    let strides = strides_of(shape);
    let size: usize = shape[batch_dims + k..].iter().product();
    let batch_size: usize = shape[batch_dims..].iter().product();
    let count: usize = outer.iter().product();
    let per_batch: usize = outer[batch_dims..].iter().product();
    let mut starts = Vec::with_capacity(count);
    for block in 0..count {
        let mut start = block / per_batch.max(1) * batch_size;
        for (i, &index) in indices[block * k..][..k].iter().enumerate() {
            let axis = batch_dims + i;
            start += bounded(index, shape[axis])? * strides[axis];
        }
        starts.push(start);
    }
    Ok(Blocks { starts, size })
}
