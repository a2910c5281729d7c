//! Second moments of what a product reads in the pruned model, and with what it gave in the
//! original.

use attar_ops::logits::weighted_rows;

/// Rows gathered before they are multiplied.
const ROWS_AT_ONCE: usize = 512;

/// Σ x, Σ y, Σ x·xᵀ and Σ x·yᵀ over rows x [size] and y [outputs].
pub(super) struct Moments {
    pub(super) size: usize,
    pub(super) outputs: usize,
    pub(super) rows: usize,
    sum_x: Vec<f64>,
    sum_y: Vec<f64>,
    xx: Vec<f64>,
    xy: Vec<f64>,
    waiting_x: Vec<f32>,
    waiting_y: Vec<f32>,
}

/// The moments about the means.
pub(super) struct Central {
    pub(super) mean_x: Vec<f64>,
    pub(super) mean_y: Vec<f64>,
    /// [size, size] and [size, outputs], over the number of rows.
    pub(super) xx: Vec<f64>,
    pub(super) xy: Vec<f64>,
}

impl Moments {
    pub(super) fn new(size: usize, outputs: usize) -> Self {
        Self {
            size,
            outputs,
            rows: 0,
            sum_x: vec![0.0; size],
            sum_y: vec![0.0; outputs],
            xx: vec![0.0; size * size],
            xy: vec![0.0; size * outputs],
            waiting_x: Vec::new(),
            waiting_y: Vec::new(),
        }
    }

    /// Takes in one row of both.
    pub(super) fn push(
        &mut self,
        x: impl IntoIterator<Item = f32>,
        y: impl IntoIterator<Item = f32>,
    ) {
        self.waiting_x.extend(x);
        self.waiting_y.extend(y);
        self.rows += 1;
        if self.waiting_x.len() >= ROWS_AT_ONCE * self.size {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let rows = self.waiting_x.len() / self.size.max(1);
        if rows == 0 {
            return;
        }
        let mut part = vec![0.0_f32; self.size * self.size.max(self.outputs)];
        for (sums, other, width) in [
            (&mut self.xx, &self.waiting_x, self.size),
            (&mut self.xy, &self.waiting_y, self.outputs),
        ] {
            let part = &mut part[..self.size * width];
            weighted_rows(part, &self.waiting_x, other, [rows, self.size], true);
            sums.iter_mut().zip(part.iter()).for_each(|(sum, &part)| *sum += f64::from(part));
        }
        for (sums, waiting) in
            [(&mut self.sum_x, &self.waiting_x), (&mut self.sum_y, &self.waiting_y)]
        {
            for row in waiting.chunks_exact(sums.len().max(1)) {
                sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
            }
        }
        self.waiting_x.clear();
        self.waiting_y.clear();
    }

    /// About the means, or, for a product whose bias cannot be set, about zero.
    pub(super) fn finish(mut self, is_centered: bool) -> Central {
        self.flush();
        let count = self.rows.max(1) as f64;
        let mean = |sums: Vec<f64>| -> Vec<f64> {
            let scale = if is_centered { 1.0 / count } else { 0.0 };
            sums.into_iter().map(|sum| sum * scale).collect()
        };
        let (mean_x, mean_y) = (mean(self.sum_x), mean(self.sum_y));
        let central = |mut sums: Vec<f64>, means: &[f64]| {
            for (row, mean) in sums.chunks_exact_mut(means.len().max(1)).zip(&mean_x) {
                for (sum, other) in row.iter_mut().zip(means) {
                    *sum = *sum / count - mean * other;
                }
            }
            sums
        };
        let (xx, xy) = (central(self.xx, &mean_x), central(self.xy, &mean_y));
        Central { mean_x, mean_y, xx, xy }
    }
}
