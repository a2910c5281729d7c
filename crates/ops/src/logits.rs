//! Loops over rows of logits, and over pairs of rows, for losses.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::gemm::{Right, Strided, add_matmul, matmul};
use crate::kernels::{optimize, softmax};

/// Elements that one thread works on at a time.
const BLOCK: usize = 1 << 13;

/// y = softmax(x) of each row, in place, and the logarithm of each row's Σ eˣ.
///
/// # Panics
/// When `logs` are not as many as the rows.
pub fn softmax_with_logs(data: &mut [f32], row_size: usize, logs: &mut [f64]) {
    assert_eq!(data.len(), row_size * logs.len(), "one logarithm per row");
    let rows_each = (BLOCK / row_size.max(1)).max(1);
    let blocks = data.par_chunks_mut((rows_each * row_size).max(1));
    blocks.zip(logs.par_chunks_mut(rows_each)).for_each(|(data, logs)| {
        softmax::softmax_rows_with_logs(data, row_size, logs);
    });
}

/// out = a·bᵀ for the rows of `a` [n, width] and of `b` [m, width].
pub fn products(out: &mut [f32], a: &[f32], b: &[f32], width: usize) {
    let (n, m) = (a.len() / width.max(1), b.len() / width.max(1));
    let right = Strided::rows(b, m, width).transposed();
    matmul(out, Strided::rows(a, n, width), Right::Strided(right), None);
}

/// out = a·b, or aᵀ·b, for `a` [n, m].
pub fn weighted_rows(out: &mut [f32], a: &[f32], b: &[f32], size: [usize; 2], transposed: bool) {
    let left = Strided::rows(a, size[0], size[1]);
    let left = if transposed { left.transposed() } else { left };
    let width = b.len() / left.size[1].max(1);
    matmul(out, left, Right::Strided(Strided::rows(b, left.size[1], width)), None);
}

/// Some columns of the rows of a matrix.
#[derive(Clone)]
pub struct Columns<'a> {
    /// [n, width].
    pub rows: &'a [f32],
    pub width: usize,
    pub columns: Range<usize>,
}

impl<'a> Columns<'a> {
    fn matrix(self) -> Strided<'a, f32> {
        Strided {
            data: &self.rows[self.columns.start..],
            size: [self.rows.len() / self.width.max(1), self.columns.len()],
            strides: [self.width, 1],
        }
    }
}

/// out += scale·aᵀ·b, of as many rows each.
///
/// # Panics
/// Columns outside of their rows, or an `out` of another size.
pub fn add_weighted(out: &mut [f32], a: Columns, b: Columns, scale: f32) {
    add_matmul(out, a.matrix().transposed(), b.matrix(), scale, true);
}

/// The length of each row.
pub fn row_norms(rows: &[f32], width: usize) -> Vec<f64> {
    rows.chunks(width.max(1)).map(|row| optimize::square_sum(row).sqrt()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_softmax_comes_with_the_logarithm_of_its_sum() {
        let x = [1.0, 2.0, 4.0, 1000.0, 999.0, -1000.0];
        let (mut y, mut logs) = (x, [0.0; 2]);
        softmax_with_logs(&mut y, 3, &mut logs);
        for (i, (&x, &y)) in x.iter().zip(&y).enumerate() {
            assert!((f64::from(y) - (f64::from(x) - logs[i / 3]).exp()).abs() < 1e-6);
        }
    }

    #[test]
    fn products_of_rows_are_a_matrix() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        let mut out = [0.0; 6];
        products(&mut out, &a, &b, 2);
        assert_eq!(out, [1.0, 2.0, 3.0, 3.0, 4.0, 7.0]);
        let mut back = [0.0; 4];
        weighted_rows(&mut back, &out, &b, [2, 3], false);
        assert_eq!(back, [4.0, 5.0, 10.0, 11.0]);
        let mut back = [0.0; 6];
        weighted_rows(&mut back, &out, &a, [2, 3], true);
        assert_eq!(back, [10.0, 14.0, 14.0, 20.0, 24.0, 34.0]);
    }

    #[test]
    fn weighted_columns_are_added() {
        let rows = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let columns = |columns| Columns { rows: &rows, width: 3, columns };
        let mut out = [100.0, 200.0];
        add_weighted(&mut out, columns(2..3), columns(0..2), -2.0);
        assert_eq!(out, [100.0 - 2.0 * (3.0 + 24.0), 200.0 - 2.0 * (6.0 + 30.0)]);
    }
}
