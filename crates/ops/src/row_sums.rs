//! Sums over many rows: of chunks whose borders do not depend on the number of threads, added up in
//! their order.

use attar_tensor::DType;
use rayon::prelude::*;

use crate::Pool;
use crate::kernels::{PARALLEL_MIN, normalize};

/// Chunks at most, each with sums of its own.
const CHUNKS_MAX: usize = 16;

/// Rows of a chunk at least.
const ROWS_MIN: usize = 16;

/// Calls `work(first_row, rows, sums)` over chunks of the rows of `data`, to change them and to add
/// to sums of zero, and fills `out` with the sum of all of these.
pub(crate) fn change_rows(
    data: &mut [f32],
    row_size: usize,
    out: &mut [f32],
    pool: &Pool,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Send + Sync,
) {
    out.fill(0.0);
    if data.is_empty() || out.is_empty() {
        return;
    }
    let is_large = data.len() >= PARALLEL_MIN;
    let each = rows_each(data.len() / row_size);
    let chunks = data.par_chunks_mut(each * row_size).enumerate();
    in_chunks(chunks, out, pool, is_large, |(index, rows), sums| work(index * each, rows, sums));
}

/// Fills `out` with the sum of all rows, which have its size.
pub(crate) fn sum_rows(data: &[f32], out: &mut [f32], pool: &Pool) {
    out.fill(0.0);
    if data.is_empty() || out.is_empty() {
        return;
    }
    let chunks = data.par_chunks(rows_each(data.len() / out.len()) * out.len());
    let is_large = data.len() >= PARALLEL_MIN;
    in_chunks(chunks, out, pool, is_large, |rows, sums| normalize::add_rows(sums, rows));
}

fn rows_each(row_count: usize) -> usize {
    row_count.div_ceil(CHUNKS_MAX).max(ROWS_MIN)
}

fn in_chunks<C: IndexedParallelIterator>(
    chunks: C,
    out: &mut [f32],
    pool: &Pool,
    is_large: bool,
    work: impl Fn(C::Item, &mut [f32]) + Send + Sync,
) {
    let count = chunks.len();
    let mut partial = pool.tensor(DType::F32, &[count, out.len()]);
    let sums = partial.slice_mut::<f32>();
    sums.fill(0.0);
    // One at a time where a second thread costs more than it brings: the order is the same.
    let at_once = if is_large { 1 } else { count };
    chunks
        .zip(sums.par_chunks_mut(out.len()))
        .with_min_len(at_once)
        .for_each(|(chunk, sums)| work(chunk, sums));
    normalize::add_rows(out, partial.slice::<f32>());
    pool.recycle(partial);
}
