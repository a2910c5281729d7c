//! Symmetric systems in f64: Cholesky factors, solutions, inverses.

use rayon::prelude::*;

/// Rows handled between two updates of what follows.
const BLOCK: usize = 64;

/// Σ a·b, in eight partial sums.
pub(in crate::prune) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_blocks, b_blocks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// The lower factor L of a positive definite matrix, row-major.
pub(super) struct Factor {
    l: Vec<f64>,
    size: usize,
}

impl Factor {
    /// L·Lᵀ = `h`; `None` where `h` is not positive definite.
    pub(super) fn new(mut h: Vec<f64>, size: usize) -> Option<Self> {
        let mut first = 0;
        while first < size {
            let end = (first + BLOCK).min(size);
            for column in first..end {
                let (above, below) = h.split_at_mut((column + 1) * size);
                let own = &mut above[column * size..];
                let square = own[column] - dot(&own[first..column], &own[first..column]);
                if !(square.is_finite() && square > 0.0) {
                    return None;
                }
                let root = square.sqrt();
                own[column] = root;
                let own = &own[..=column];
                below.par_chunks_mut(size).for_each(|row| {
                    let rest = row[column] - dot(&row[first..column], &own[first..column]);
                    row[column] = rest / root;
                });
            }
            // What follows, without this block's share.
            let panel: Vec<f64> = (end..size)
                .flat_map(|row| h[row * size + first..row * size + end].to_vec())
                .collect();
            let width = end - first;
            h[end * size..].par_chunks_mut(size).enumerate().for_each(|(i, row)| {
                let own = &panel[i * width..(i + 1) * width];
                for (j, other) in panel.chunks_exact(width).take(i + 1).enumerate() {
                    row[end + j] -= dot(own, other);
                }
            });
            first = end;
        }
        Some(Self { l: h, size })
    }

    /// x with L·Lᵀ·x = b for every column of `b` [size, n].
    pub(super) fn solve(&self, b: &[f64], n: usize) -> Vec<f64> {
        // By columns, so that each is contiguous.
        let mut columns = vec![0.0; b.len()];
        for (row, values) in b.chunks_exact(n.max(1)).enumerate() {
            for (column, value) in values.iter().enumerate() {
                columns[column * self.size + row] = *value;
            }
        }
        let size = self.size;
        columns.par_chunks_mut(size.max(1)).for_each(|x| {
            for row in 0..size {
                let l = &self.l[row * size..row * size + row];
                x[row] = (x[row] - dot(l, &x[..row])) / self.l[row * size + row];
            }
            for row in (0..size).rev() {
                let value = x[row] / self.l[row * size + row];
                x[row] = value;
                let l = &self.l[row * size..row * size + row];
                x[..row].iter_mut().zip(l).for_each(|(x, l)| *x -= value * l);
            }
        });
        let mut result = vec![0.0; b.len()];
        for (column, values) in columns.chunks_exact(size.max(1)).enumerate() {
            for (row, value) in values.iter().enumerate() {
                result[row * n + column] = *value;
            }
        }
        result
    }

    /// (L·Lᵀ)⁻¹.
    pub(super) fn inverse(&self) -> Vec<f64> {
        let mut identity = vec![0.0; self.size * self.size];
        (0..self.size).for_each(|i| identity[i * self.size + i] = 1.0);
        self.solve(&identity, self.size)
    }
}

/// a·b for `a` [n, m] and `b` [m, k].
pub(super) fn product(a: &[f64], b: &[f64], [m, k]: [usize; 2]) -> Vec<f64> {
    let mut out = vec![0.0; a.len() / m.max(1) * k];
    out.par_chunks_mut(k.max(1)).zip(a.par_chunks(m.max(1))).for_each(|(out, a)| {
        for (factor, row) in a.iter().zip(b.chunks_exact(k.max(1))) {
            if *factor != 0.0 {
                out.iter_mut().zip(row).for_each(|(out, b)| *out += factor * b);
            }
        }
    });
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn numbers(count: usize, seed: u32) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / 8_388_608.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// XᵀX of rows whose channels move together.
    pub(in super::super) fn moments(size: usize) -> Vec<f64> {
        let rows = 3 * size;
        let (own, shared) = (numbers(rows * size, 1), numbers(rows, 2));
        let mut transposed = vec![0.0; rows * size];
        let mut x = vec![0.0; rows * size];
        for (i, own) in own.iter().enumerate() {
            x[i] = own + shared[i / size];
            transposed[i % size * rows + i / size] = x[i];
        }
        product(&transposed, &x, [rows, size])
    }

    #[test]
    fn a_solution_multiplies_back_beyond_a_block() {
        let (size, n) = (150, 3);
        let (h, b) = (moments(size), numbers(size * n, 3));
        let x = Factor::new(h.clone(), size).unwrap().solve(&b, n);
        let back = product(&h, &x, [size, n]);
        let worst = back.iter().zip(&b).fold(0.0_f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst < 1e-9, "{worst}");
        assert!(Factor::new(vec![1.0, 2.0, 2.0, 1.0], 2).is_none(), "a negative eigenvalue");
    }
}
