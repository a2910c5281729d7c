//! Second-order rounding (Frantar et al., "GPTQ", 2022; in the form of Chee et al., "QuIP", 2023).
//!
//! For inputs X and weights W [inputs, outputs], the error of a product is ‖X·E‖² with E = W − Ŵ,
//! which is Σ over outputs of eᵀ·H·e with H = XᵀX. Weights are rounded one input after the other,
//! and what rounding left over is made up for by the inputs that are still to come: with H = L·Lᵀ,
//! from the last input to the first,
//!
//! ŵₖ = round(wₖ + Σ over i > k of eᵢ·L[i, k] / L[k, k]).
//!
//! The largest inputs come first, while the most others can still make up for them.

use attar_ops::logits::{products, weighted_rows};

use super::weights::Grid;

/// Inputs rounded before their errors are handed on by a product.
const BLOCK: usize = 64;

/// Rounds `w` [size, n] to levels of `grid`, by the moments `h` [size, size], of which each input's
/// own is raised by `ridge` [size].
///
/// Returns levels, or `None` where `h` is not positive definite, so that nothing can be gained.
pub(crate) fn round(w: &[f32], grid: &Grid, mut h: Vec<f32>, ridge: &[f32]) -> Option<Vec<i8>> {
    let (size, n) = (ridge.len(), grid.outputs);
    for (k, &ridge) in ridge.iter().enumerate() {
        h[k * size + k] += ridge;
    }
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|&a, &b| h[a * size + a].total_cmp(&h[b * size + b]));
    let row = |&row: &usize| order.iter().map(move |&column| (row, column));
    let ordered = order.iter().flat_map(row).map(|(row, column)| h[row * size + column]).collect();
    drop(h);
    let l = cholesky(ordered, size)?;
    let mut levels = vec![0_i8; size * n];
    // In the order of rounding.
    let mut errors = vec![0.0_f32; size * n];
    let mut first = size;
    let mut targets = vec![0.0_f32; BLOCK * n];
    while first > 0 {
        let end = first;
        first = first.saturating_sub(BLOCK);
        let width = end - first;
        let targets = &mut targets[..width * n];
        targets.fill(0.0);
        if end < size {
            // Columns first..end of L below the block, against the errors there.
            let below: Vec<f32> = (end..size)
                .flat_map(|row| l[row * size + first..row * size + end].iter().copied())
                .collect();
            weighted_rows(targets, &below, &errors[end * n..], [size - end, width], true);
        }
        for k in (first..end).rev() {
            let diagonal = l[k * size + k];
            let (target, rest) = {
                let (before, own) = targets.split_at_mut((k - first) * n);
                (&own[..n], before)
            };
            let (scales, zeros) = grid.row(order[k]);
            for column in 0..n {
                let at = order[k] * n + column;
                let (scale, zero) = (scales[column], zeros[column]);
                let wanted = w[at] + target[column] / diagonal;
                let level = grid.level(wanted, scale, zero);
                levels[at] = level as i8;
                errors[k * n + column] = w[at] - (level - zero) * scale;
            }
            let error = &errors[k * n..(k + 1) * n];
            for (i, target) in rest.chunks_exact_mut(n).enumerate() {
                let factor = l[k * size + first + i];
                target.iter_mut().zip(error).for_each(|(target, e)| *target += factor * e);
            }
        }
    }
    Some(levels)
}

/// L with L·Lᵀ = `h` in the lower triangle, or `None` where there is none. What stands above the
/// diagonal is of no meaning.
pub(crate) fn cholesky(mut h: Vec<f32>, size: usize) -> Option<Vec<f32>> {
    let mut first = 0;
    while first < size {
        let end = (first + BLOCK).min(size);
        // The panel: columns first..end, of all rows from `first` on.
        for column in first..end {
            let square = h[column * size + column];
            if !(square.is_finite() && square > 0.0) {
                return None;
            }
            let root = square.sqrt();
            h[column * size + column] = root;
            for row in column + 1..size {
                h[row * size + column] /= root;
            }
            let own: Vec<f32> = (column + 1..end).map(|row| h[row * size + column]).collect();
            for row in column + 1..size {
                let line = &mut h[row * size + column..row * size + end];
                let Some((factor, rest)) = line.split_first_mut() else { continue };
                rest.iter_mut().zip(&own).for_each(|(h, own)| *h -= *factor * own);
            }
        }
        let (rest, width) = (size - end, end - first);
        if rest > 0 {
            let panel: Vec<f32> = (end..size)
                .flat_map(|row| h[row * size + first..row * size + end].iter().copied())
                .collect();
            let mut update = vec![0.0; rest * rest];
            products(&mut update, &panel, &panel, width);
            for (row, update) in update.chunks_exact(rest).enumerate() {
                let line = &mut h[(end + row) * size + end..][..=row];
                line.iter_mut().zip(update).for_each(|(h, update)| *h -= update);
            }
        }
        first = end;
    }
    Some(h)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// XᵀX of rows whose channels move together.
    fn moments(size: usize) -> Vec<f32> {
        let rows = 4 * size;
        let own = numbers(rows * size, 1);
        let shared = numbers(rows, 2);
        let x: Vec<f32> = (0..rows * size).map(|i| own[i] + 2.0 * shared[i / size]).collect();
        let mut h = vec![0.0; size * size];
        weighted_rows(&mut h, &x, &x, [rows, size], true);
        h
    }

    #[test]
    fn the_factor_of_a_matrix_larger_than_a_block_multiplies_back() {
        let size = 150;
        let h = moments(size);
        let mut l = cholesky(h.clone(), size).unwrap();
        for row in 0..size {
            l[row * size + row + 1..(row + 1) * size].fill(0.0);
        }
        let mut back = vec![0.0; size * size];
        products(&mut back, &l, &l, size);
        let largest = h.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let worst = h.iter().zip(&back).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        // Sums of 150 products in f32.
        assert!(worst < 1e-5 * largest, "{worst} of {largest}");
        assert!(cholesky(vec![1.0, 2.0, 2.0, 1.0], 2).is_none(), "it has a negative eigenvalue");
    }

    #[test]
    fn the_error_of_the_product_is_less_than_that_of_the_nearest_levels() {
        let (size, n) = (150, 3);
        let (h, w) = (moments(size), numbers(size * n, 3));
        let scales = vec![0.1; n];
        let grid = Grid::of_outputs(&scales, 127.0);
        let levels = round(&w, &grid, h.clone(), &vec![0.0; size]).unwrap();
        let cost = |quantized: &dyn Fn(usize) -> f32| -> f64 {
            let e: Vec<f32> = (0..size * n).map(|i| w[i] - quantized(i)).collect();
            let mut he = vec![0.0; size * n];
            weighted_rows(&mut he, &h, &e, [size, size], false);
            e.iter().zip(&he).map(|(a, b)| f64::from(a * b)).sum()
        };
        let nearest = cost(&|i| (w[i] / 0.1).round_ties_even() * 0.1);
        let second_order = cost(&|i| f32::from(levels[i]) * 0.1);
        assert!(second_order < 0.5 * nearest, "{second_order} of {nearest}");
    }

    #[test]
    fn levels_stay_within_their_bound() {
        let h = moments(8);
        let w: Vec<f32> = numbers(8, 5).iter().map(|w| w * 3.0).collect();
        let levels = round(&w, &Grid::of_outputs(&[0.1], 7.0), h, &[0.0; 8]).unwrap();
        assert!(levels.iter().all(|level| level.abs() <= 7), "{levels:?}");
    }
}
