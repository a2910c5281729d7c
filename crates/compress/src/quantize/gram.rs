//! Second moments of the inputs of a product: XᵀX, summed batch by batch.

use std::ops::Range;

use attar_ops::logits::{Columns, add_weighted};
use attar_tensor::Tensor;

use super::statistics::ChannelAxis;

/// Rows that are gathered before they are multiplied.
const ROWS_AT_ONCE: usize = 256;
/// Rows of XᵀX that are held together, up to the diagonal's end: what is above it is below it, too.
const BLOCK: usize = 128;
/// Rows after which the moments of a value are known well enough: so many, and so many per channel.
const ROWS_MAX: usize = 1 << 14;
const ROWS_PER_CHANNEL: usize = 16;
/// Pixels taken of one image.
const PIXELS_MAX: usize = 256;

/// Σ x·xᵀ over the rows x of a value.
pub(crate) struct Gram {
    axis: ChannelAxis,
    /// Channels; 0 before the first row.
    pub(crate) size: usize,
    /// Blocks of rows, each up to its last diagonal element, without the rows of X that wait.
    sums: Vec<f32>,
    waiting: Vec<f32>,
    pub(crate) rows: usize,
}

impl Gram {
    pub(crate) fn new(axis: ChannelAxis) -> Self {
        Self { axis, size: 0, sums: Vec::new(), waiting: Vec::new(), rows: 0 }
    }

    /// For rows of `size` channels, handed to [`push`](Self::push).
    pub(crate) fn of_size(size: usize) -> Self {
        Self { size, sums: empty(size), ..Self::new(ChannelAxis::Last) }
    }

    /// Takes in one row, unless enough were seen.
    pub(crate) fn push(&mut self, row: &[f32]) {
        if row.len() != self.size || self.rows >= ROWS_MAX.max(ROWS_PER_CHANNEL * self.size) {
            return;
        }
        self.waiting.extend_from_slice(row);
        self.rows += 1;
        if self.waiting.len() >= ROWS_AT_ONCE * self.size {
            self.flush();
        }
    }

    /// Takes in one batch, unless enough was seen.
    pub(crate) fn fold(&mut self, tensor: &Tensor) {
        let [outer, channels, inner] = self.axis.split(tensor.shape());
        if channels == 0 || (self.size != 0 && self.size != channels) {
            return;
        }
        if self.size == 0 {
            self.size = channels;
            self.sums = empty(channels);
        }
        let values = tensor.values::<f32>();
        let step = inner.div_ceil(PIXELS_MAX).max(1) | 1;
        for image in 0..outer {
            if self.rows >= ROWS_MAX.max(ROWS_PER_CHANNEL * channels) {
                return;
            }
            for pixel in (0..inner).step_by(step) {
                let first = image * channels * inner + pixel;
                let row = values[first..].iter().step_by(inner).take(channels);
                self.waiting.extend(row);
                self.rows += 1;
                if self.waiting.len() >= ROWS_AT_ONCE * channels {
                    self.flush();
                }
            }
        }
    }

    fn flush(&mut self) {
        let rows = self.waiting.len() / self.size.max(1);
        if rows == 0 {
            return;
        }
        for (block, place) in blocks(self.size) {
            let columns = |columns| Columns { rows: &self.waiting, width: self.size, columns };
            let before = columns(0..block.end);
            add_weighted(&mut self.sums[place], columns(block), before, 1.0);
        }
        self.waiting.clear();
    }

    /// The sums over all rows, [size, size].
    pub(crate) fn finish(mut self) -> Vec<f32> {
        self.flush();
        let size = self.size;
        let mut full = vec![0.0; size * size];
        for (block, place) in blocks(size) {
            let rows = self.sums[place].chunks_exact(block.end);
            for (row, sums) in block.zip(rows) {
                full[row * size..][..sums.len()].copy_from_slice(sums);
            }
        }
        for row in 0..size {
            for column in row + 1..size {
                full[row * size + column] = full[column * size + row];
            }
        }
        full
    }
}

/// The blocks of rows of a matrix [size, size], and where each is held.
fn blocks(size: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let mut held = 0;
    (0..size).step_by(BLOCK).map(move |first| {
        let block = first..(first + BLOCK).min(size);
        let place = held..held + block.len() * block.end;
        held = place.end;
        (block, place)
    })
}

fn empty(size: usize) -> Vec<f32> {
    vec![0.0; blocks(size).last().map_or(0, |(_, place)| place.end)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_all_rows_are_whole_and_symmetric() {
        // More rows than wait at once, and a last block that is not full.
        let (rows, size) = (ROWS_AT_ONCE + 3, 2 * BLOCK + 5);
        let at = |row: usize, column: usize| ((row * 7 + column * column) % 11) as f32 - 5.0;
        let x: Vec<f32> = (0..rows * size).map(|i| at(i / size, i % size)).collect();
        let mut gram = Gram::new(ChannelAxis::Last);
        gram.fold(&Tensor::new(&[rows, size], &x));
        let sums = gram.finish();
        for (i, found) in sums.iter().enumerate() {
            let sum: f32 = (0..rows).map(|row| at(row, i / size) * at(row, i % size)).sum();
            assert_eq!(*found, sum, "{i}");
        }
        assert!(Gram::new(ChannelAxis::Last).finish().is_empty());
    }
}
