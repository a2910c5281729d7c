//! Which channels a product can do without, once its weights are refitted: a greedy search by second
//! order (Hassibi and Stork, "Optimal Brain Surgeon", 1993; by blocks as in Kurtic et al., "ZipLM",
//! 2023, arXiv:2302.04089).
//!
//! Around the best weights W, a change E costs tr(Eᵀ·H·E). To do without the rows B costs
//! `tr(W_Bᵀ·(H⁻¹)_BB⁻¹·W_B)`, if the others make up for it: `W ← W − H⁻¹_{:,B}·(H⁻¹)_BB⁻¹·W_B`. What
//! is gone leaves H⁻¹ as a row that is eliminated.

use rayon::prelude::*;

use super::solve::{Factor, dot};

/// Rows that a thread eliminates at least, so that small systems stay on one.
const ROWS_AT_ONCE: usize = 64;

/// Removes `count` blocks of rows of `w` [size, n], one after the other, each time the one that
/// costs least.
///
/// Returns the blocks in the order of their removal with what each cost, or `None` where `inverse`
/// is not positive definite.
pub(super) fn remove(
    w: &mut [f64],
    inverse: &mut [f64],
    blocks: &[Vec<usize>],
    count: usize,
) -> Option<Vec<(usize, f64)>> {
    let size = blocks.iter().flatten().max().map_or(0, |last| last + 1).max(isqrt(inverse.len()));
    let n = w.len() / size.max(1);
    let mut alive: Vec<usize> = (0..blocks.len()).collect();
    let mut removed = Vec::with_capacity(count);
    for _ in 0..count {
        let mut least: Option<(f64, usize)> = None;
        for (at, &block) in alive.iter().enumerate() {
            let cost = cost(w, inverse, &blocks[block], [size, n])?;
            if least.is_none_or(|(known, _)| cost < known) {
                least = Some((cost, at));
            }
        }
        let Some((cost, at)) = least else { break };
        let block = alive.remove(at);
        eliminate(w, inverse, &blocks[block], [size, n]);
        removed.push((block, cost));
    }
    Some(removed)
}

fn isqrt(square: usize) -> usize {
    (square as f64).sqrt().round() as usize
}

fn cost(w: &[f64], inverse: &[f64], block: &[usize], [size, n]: [usize; 2]) -> Option<f64> {
    let row = |i: usize| &w[i * n..(i + 1) * n];
    if let &[only] = block {
        let diagonal = inverse[only * size + only];
        return (diagonal > 0.0).then(|| dot(row(only), row(only)) / diagonal);
    }
    let part: Vec<f64> =
        block.iter().flat_map(|&i| block.iter().map(move |&j| inverse[i * size + j])).collect();
    let rows: Vec<f64> = block.iter().flat_map(|&i| row(i).iter().copied()).collect();
    let solved = Factor::new(part, block.len())?.solve(&rows, n);
    Some(dot(&rows, &solved))
}

/// Takes the rows of a block out, one after the other.
fn eliminate(w: &mut [f64], inverse: &mut [f64], block: &[usize], [size, n]: [usize; 2]) {
    for &gone in block {
        let pivot = inverse[gone * size..(gone + 1) * size].to_vec();
        let own = w[gone * n..(gone + 1) * n].to_vec();
        let diagonal = pivot[gone];
        let rows = inverse.par_chunks_mut(size).zip(w.par_chunks_mut(n)).zip(&pivot);
        rows.with_min_len(ROWS_AT_ONCE).for_each(|((inverse, w), &factor)| {
            if factor == 0.0 {
                return;
            }
            let factor = factor / diagonal;
            inverse.iter_mut().zip(&pivot).for_each(|(value, pivot)| *value -= factor * pivot);
            w.iter_mut().zip(&own).for_each(|(value, own)| *value -= factor * own);
        });
        // Exactly nothing, not what rounding left.
        for i in 0..size {
            inverse[gone * size + i] = 0.0;
            inverse[i * size + gone] = 0.0;
        }
        w[gone * n..(gone + 1) * n].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::solve::product;
    use super::super::solve::tests::{moments, numbers};
    use super::*;

    fn error(h: &[f64], e: &[f64], size: usize, n: usize) -> f64 {
        dot(e, &product(h, e, [size, n]))
    }

    #[test]
    fn the_cost_is_the_error_that_is_left_after_the_others_made_up_for_it() {
        let (size, n) = (12, 3);
        let (h, w) = (moments(size), numbers(size * n, 5));
        let blocks: Vec<Vec<usize>> = (0..4).map(|b| (b * 3..b * 3 + 3).collect()).collect();
        let inverse = Factor::new(h.clone(), size).unwrap().inverse();
        let costs: Vec<f64> =
            blocks.iter().map(|b| cost(&w, &inverse, b, [size, n]).unwrap()).collect();
        for (block, cost) in blocks.iter().zip(&costs) {
            let (mut refitted, mut rest) = (w.clone(), inverse.clone());
            eliminate(&mut refitted, &mut rest, block, [size, n]);
            let e: Vec<f64> = refitted.iter().zip(&w).map(|(a, b)| a - b).collect();
            assert!((error(&h, &e, size, n) - cost).abs() < 1e-9 * cost);
        }
        let least = (0..4).min_by(|&a, &b| costs[a].total_cmp(&costs[b])).unwrap();
        let removed = remove(&mut w.clone(), &mut inverse.clone(), &blocks, 2).unwrap();
        assert_eq!(removed.len(), 2);
        assert_eq!(removed[0].0, least);
        assert!((removed[0].1 - costs[least]).abs() < 1e-9 * costs[least]);
    }
}
