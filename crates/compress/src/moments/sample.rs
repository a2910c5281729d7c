//! A sample of a product's rows, each with the batch that it is of.

use attar_tensor::Tensor;

use super::Product;
use super::rows::Rows;
use crate::quantize::calibrate::Fold;

/// Rows kept of each batch, spread over it.
const ROWS_OF_BATCH: usize = 16;
/// Rows kept of all.
const ROWS_MAX: usize = 1024;

/// Every n-th row of every n-th batch: whenever there are too many, every other batch goes.
pub(crate) struct RowSample {
    rows: Rows,
    groups: usize,
    width: usize,
    /// By group: [rows, width], and each row's batch.
    kept: Vec<Vec<f32>>,
    batches: Vec<usize>,
    batch: usize,
    /// Of so many batches one is kept.
    step: usize,
}

impl RowSample {
    pub(crate) fn new(product: &Product) -> Self {
        let groups = product.matrices.iter().map(|matrix| matrix.group + 1).max().unwrap_or(1);
        let width = product.matrices.first().map_or(0, |matrix| matrix.inputs.len());
        let kept = vec![Vec::new(); groups];
        let (batches, rows) = (Vec::new(), product.rows.clone());
        Self { rows, groups, width, kept, batches, batch: 0, step: 1 }
    }

    /// The rows of a group, row-major.
    pub(crate) fn rows(&self, group: usize) -> &[f32] {
        &self.kept[group]
    }

    /// The batch of each row, by rising number.
    pub(crate) fn batches(&self) -> &[usize] {
        &self.batches
    }

    /// Leaves every other batch of those that are kept.
    fn thin(&mut self) {
        self.step *= 2;
        let keeps: Vec<bool> =
            self.batches.iter().map(|batch| batch.is_multiple_of(self.step)).collect();
        for kept in &mut self.kept {
            let rows = kept.chunks_exact(self.width.max(1)).zip(&keeps);
            *kept = rows.filter(|(_, keeps)| **keeps).flat_map(|(row, _)| row.to_vec()).collect();
        }
        let step = self.step;
        self.batches.retain(|batch| batch.is_multiple_of(step));
    }
}

impl Fold for RowSample {
    fn fold(&mut self, tensor: &Tensor) -> bool {
        let batch = self.batch;
        self.batch += 1;
        if !batch.is_multiple_of(self.step) {
            return true;
        }
        let mut count = 0;
        self.rows.for_each(tensor, &mut |group, _| count += usize::from(group == 0));
        let step = count.div_ceil(ROWS_OF_BATCH).max(1);
        let (mut is_finite, mut seen) = (true, vec![0; self.groups]);
        let Self { rows, kept, batches, width, .. } = self;
        rows.for_each(tensor, &mut |group, row| {
            let Some(seen) = seen.get_mut(group).filter(|_| row.len() == *width) else { return };
            *seen += 1;
            if (*seen - 1) % step != 0 {
                return;
            }
            is_finite &= row.iter().all(|x| x.is_finite());
            kept[group].extend_from_slice(row);
            if group == 0 {
                batches.push(batch);
            }
        });
        while self.batches.len() > ROWS_MAX {
            self.thin();
        }
        is_finite
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::DataAxis;

    #[test]
    fn rows_stay_spread_over_all_batches() {
        let rows = Rows::Channels(DataAxis::Last);
        let kept = vec![Vec::new()];
        let mut sample =
            RowSample { rows, groups: 1, width: 2, kept, batches: Vec::new(), batch: 0, step: 1 };
        for batch in 0..1000 {
            assert!(sample.fold(&Tensor::new(&[4, 2], &[batch as f32; 8])));
        }
        let count = sample.batches().len();
        assert!((ROWS_MAX / 2..=ROWS_MAX).contains(&count), "{count}");
        assert_eq!(sample.rows(0).len(), 2 * count);
        assert_eq!(sample.batches().last(), Some(&996));
        let agree = sample.rows(0).chunks_exact(2).zip(sample.batches());
        assert!(agree.into_iter().all(|(row, &batch)| row == [batch as f32; 2]));
    }
}
