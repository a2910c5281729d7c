//! What the normalizations ask of a row, in f32 by the vector kernels and in f64.

use crate::kernels::normalize;
use crate::real::Real;

/// Sums over a row and what is made of them.
pub(crate) trait RowMath: Real {
    fn sum(row: &[Self]) -> Self;

    /// Σ (x − mean)².
    fn squares(row: &[Self], mean: Self) -> Self;

    /// out ← (x − mean) · factor + bias.
    fn affine(out: &mut [Self], x: &[Self], mean: Self, factor: Self, bias: Self);

    /// Mean and population variance.
    fn statistics(row: &[Self]) -> (Self, Self) {
        let factor = Self::ONE / Self::of(row.len() as f64);
        let mean = Self::sum(row) * factor;
        (mean, Self::squares(row, mean) * factor)
    }
}

impl RowMath for f32 {
    fn sum(row: &[Self]) -> Self {
        normalize::sum_row(row)
    }

    fn squares(row: &[Self], mean: Self) -> Self {
        normalize::centred_squares_row(row, mean)
    }

    fn affine(out: &mut [Self], x: &[Self], mean: Self, factor: Self, bias: Self) {
        normalize::affine_into(out, x, mean, factor, bias);
    }
}

impl RowMath for f64 {
    fn sum(row: &[Self]) -> Self {
        row.iter().sum()
    }

    fn squares(row: &[Self], mean: Self) -> Self {
        row.iter().map(|x| (x - mean) * (x - mean)).sum()
    }

    fn affine(out: &mut [Self], x: &[Self], mean: Self, factor: Self, bias: Self) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = (x - mean) * factor + bias);
    }
}
