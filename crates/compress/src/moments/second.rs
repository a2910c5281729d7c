//! Second moments XᵀX of a product's rows, of each group, summed batch by batch.

use attar_tensor::Tensor;

use super::Product;
use super::rows::Rows;
use crate::quantize::calibrate::Fold;
use crate::quantize::gram::Gram;

pub(crate) struct SecondMoments {
    rows: Rows,
    /// By group.
    grams: Vec<Gram>,
    /// Whether all rows were finite.
    is_finite: bool,
}

impl SecondMoments {
    pub(crate) fn new(product: &Product) -> Self {
        let groups = product.matrices.iter().map(|matrix| matrix.group + 1).max().unwrap_or(1);
        let size = product.matrices.first().map_or(0, |matrix| matrix.inputs.len());
        let grams = (0..groups).map(|_| Gram::of_size(size)).collect();
        Self { rows: product.rows.clone(), grams, is_finite: true }
    }

    /// Σ x·xᵀ by group, [size, size] each.
    pub(crate) fn finish(self) -> Vec<Vec<f32>> {
        self.grams.into_iter().map(Gram::finish).collect()
    }
}

impl Fold for SecondMoments {
    fn fold(&mut self, tensor: &Tensor) -> bool {
        let Self { rows, grams, is_finite } = self;
        rows.for_each(tensor, &mut |group, row| {
            *is_finite &= row.iter().all(|x| x.is_finite());
            if let Some(gram) = grams.get_mut(group) {
                gram.push(row);
            }
        });
        *is_finite
    }
}
