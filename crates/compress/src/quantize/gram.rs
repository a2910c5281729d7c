//! Second moments of the inputs of a product: XᵀX, summed batch by batch.

use attar_ops::logits::weighted_rows;
use attar_tensor::Tensor;

use super::statistics::ChannelAxis;

/// Rows that are gathered before they are multiplied.
const ROWS_AT_ONCE: usize = 128;
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
    /// [size, size], without the rows that wait.
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
        Self { size, sums: vec![0.0; size * size], ..Self::new(ChannelAxis::Last) }
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
            self.sums = vec![0.0; channels * channels];
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
        let mut part = vec![0.0; self.sums.len()];
        weighted_rows(&mut part, &self.waiting, &self.waiting, [rows, self.size], true);
        self.sums.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
        self.waiting.clear();
    }

    /// The sums over all rows, row-major.
    pub(crate) fn finish(mut self) -> Vec<f32> {
        self.flush();
        self.sums
    }
}
