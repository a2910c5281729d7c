//! Keys and values of earlier steps, put before those of this one.

use attar_tensor::{DType, Element, Tensor};

use super::core::Heads;
use crate::{OpError, Pool};

/// Rows of keys or values to be joined: what stands in `heads` for each batch and head.
pub(crate) struct Rows<'a, T> {
    pub(crate) heads: Heads<'a, T>,
    pub(crate) count: usize,
}

/// [batch, heads, past + new, size]: the past rows [batch, heads, past, size] and the new ones.
pub(crate) fn joined<T: Element>(
    past: Option<(&[T], usize)>,
    new: &Rows<T>,
    [batch, heads, size]: [usize; 3],
    pool: &Pool,
) -> Tensor {
    let (past, past_count) = past.unwrap_or((&[], 0));
    let total = past_count + new.count;
    let mut present = pool.tensor(T::DTYPE, &[batch, heads, total, size]);
    let block_size = total * size;
    if block_size == 0 {
        return present;
    }
    let past_size = past_count * size;
    for (index, block) in present.slice_mut::<T>().chunks_exact_mut(block_size).enumerate() {
        block[..past_size].copy_from_slice(&past[index * past_size..(index + 1) * past_size]);
        let [text_stride, head_stride, row_stride] = new.heads.strides;
        let start = index / heads * text_stride + index % heads * head_stride;
        for (row, target) in block[past_size..].chunks_exact_mut(size).enumerate() {
            let at = start + row * row_stride;
            target.copy_from_slice(&new.heads.data[at..at + size]);
        }
    }
    present
}

/// The count of rows of a past state of [batch, heads, rows, size].
pub(crate) fn past_rows(
    past: &Tensor,
    dtype: DType,
    index: usize,
    [batch, heads, size]: [usize; 3],
) -> Result<usize, OpError> {
    if past.dtype() != dtype {
        return Err(OpError::DType { index, found: past.dtype() });
    }
    match *past.shape() {
        [b, h, rows, s] if [b, h, s] == [batch, heads, size] => Ok(rows),
        _ => {
            let expected = format!("[{batch}, {heads}, past, {size}]");
            Err(OpError::value(&format!("the shape of input {index}"), past.shape(), expected))
        }
    }
}
