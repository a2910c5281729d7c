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
/// Of all rows, the part that may be gone before the others are moved together.
const GONE_MAX: f64 = 0.25;

/// Removes `count` blocks of rows of all systems, one after the other, each time the one that costs
/// least in all. `blocks` names the rows of each, by system.
///
/// Returns the blocks in the order of their removal with what each cost, or `None` where an inverse
/// is not positive definite.
pub(super) fn remove(
    mut systems: Vec<System>,
    mut blocks: Vec<Vec<Vec<usize>>>,
    count: usize,
) -> Option<Vec<(usize, f64)>> {
    let mut alive: Vec<usize> = (0..blocks.first().map_or(0, Vec::len)).collect();
    let mut removed = Vec::with_capacity(count);
    for _ in 0..count {
        let mut least: Option<(f64, usize)> = None;
        for (at, &block) in alive.iter().enumerate() {
            let mut cost = 0.0;
            for (system, blocks) in systems.iter().zip(&blocks) {
                cost += system.weight * system.cost(&blocks[block])?;
            }
            if least.is_none_or(|(known, _)| cost < known) {
                least = Some((cost, at));
            }
        }
        let Some((cost, at)) = least else { break };
        let block = alive.remove(at);
        removed.push((block, cost));
        for (system, blocks) in systems.iter_mut().zip(&mut blocks) {
            system.eliminate(&blocks[block]);
            if system.gone as f64 > GONE_MAX * system.size as f64 {
                system.gather(&alive, blocks);
            }
        }
    }
    Some(removed)
}

/// Weights, and the inverse of the moments of what they read.
pub(super) struct System {
    w: Vec<f64>,
    /// Its lower triangle is what counts.
    inverse: Vec<f64>,
    size: usize,
    n: usize,
    /// By which its costs are multiplied.
    weight: f64,
    /// Rows that are there, and gone.
    gone: usize,
}

impl System {
    /// Of `w` [size, n] and `inverse` [size, size].
    pub(super) fn new(w: Vec<f64>, inverse: Vec<f64>, n: usize, weight: f64) -> Self {
        let size = w.len() / n.max(1);
        Self { w, inverse, size, n, weight, gone: 0 }
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.w[i * self.n..(i + 1) * self.n]
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.inverse[i.max(j) * self.size + i.min(j)]
    }

    /// What it costs to do without a block.
    fn cost(&self, block: &[usize]) -> Option<f64> {
        if block.is_empty() {
            return Some(0.0);
        }
        if let &[only] = block {
            let diagonal = self.at(only, only);
            return (diagonal > 0.0).then(|| dot(self.row(only), self.row(only)) / diagonal);
        }
        let part: Vec<f64> =
            block.iter().flat_map(|&i| block.iter().map(move |&j| self.at(i, j))).collect();
        let rows: Vec<f64> = block.iter().flat_map(|&i| self.row(i).iter().copied()).collect();
        let solved = Factor::new(part, block.len())?.solve(&rows, self.n);
        Some(dot(&rows, &solved))
    }

    /// Takes the rows of a block out, one after the other.
    fn eliminate(&mut self, block: &[usize]) {
        let (size, n) = (self.size, self.n);
        for &gone in block {
            let pivot: Vec<f64> = (0..size).map(|j| self.at(gone, j)).collect();
            let own = self.row(gone).to_vec();
            let diagonal = pivot[gone];
            let rows = self.inverse.par_chunks_mut(size).zip(self.w.par_chunks_mut(n)).enumerate();
            rows.with_min_len(ROWS_AT_ONCE).for_each(|(i, (inverse, w))| {
                if pivot[i] == 0.0 {
                    return;
                }
                let factor = pivot[i] / diagonal;
                let below = inverse[..=i].iter_mut().zip(&pivot);
                below.for_each(|(value, pivot)| *value -= factor * pivot);
                w.iter_mut().zip(&own).for_each(|(value, own)| *value -= factor * own);
            });
            // Exactly nothing, not what rounding left.
            for i in 0..size {
                self.inverse[i.max(gone) * size + i.min(gone)] = 0.0;
            }
            self.w[gone * n..(gone + 1) * n].fill(0.0);
        }
        self.gone += block.len();
    }

    /// Leaves out all rows that are in no block of `alive`; `blocks` then names the new places.
    fn gather(&mut self, alive: &[usize], blocks: &mut [Vec<usize>]) {
        let mut kept: Vec<usize> = alive.iter().flat_map(|&block| blocks[block].clone()).collect();
        kept.sort_unstable();
        let mut inverse = Vec::with_capacity(kept.len() * kept.len());
        let mut w = Vec::with_capacity(kept.len() * self.n);
        for &i in &kept {
            inverse.extend(kept.iter().map(|&j| self.at(i, j)));
            w.extend_from_slice(self.row(i));
        }
        for &block in alive {
            for row in &mut blocks[block] {
                *row = kept.binary_search(row).expect("rows of blocks are kept");
            }
        }
        *self = Self::new(w, inverse, self.n, self.weight);
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

    /// A drawn problem with blocks of three rows.
    fn drawn(count: usize) -> (Vec<f64>, System, Vec<Vec<usize>>) {
        let (size, n) = (3 * count, 3);
        let (h, w) = (moments(size), numbers(size * n, 5));
        let inverse = Factor::new(h.clone(), size).unwrap().inverse();
        let blocks = (0..count).map(|b| (b * 3..b * 3 + 3).collect()).collect();
        (h, System::new(w, inverse, n, 1.0), blocks)
    }

    #[test]
    fn the_cost_is_the_error_that_is_left_after_the_others_made_up_for_it() {
        let (h, system, blocks) = drawn(4);
        let (size, n) = (system.size, system.n);
        let costs: Vec<f64> = blocks.iter().map(|block| system.cost(block).unwrap()).collect();
        for (block, cost) in blocks.iter().zip(&costs) {
            let mut refitted = System::new(system.w.clone(), system.inverse.clone(), n, 1.0);
            refitted.eliminate(block);
            let e: Vec<f64> = refitted.w.iter().zip(&system.w).map(|(a, b)| a - b).collect();
            assert!((error(&h, &e, size, n) - cost).abs() < 1e-9 * cost);
        }
        let least = (0..4).min_by(|&a, &b| costs[a].total_cmp(&costs[b])).unwrap();
        let removed = remove(vec![system], vec![blocks], 2).unwrap();
        assert_eq!(removed.len(), 2);
        assert_eq!(removed[0].0, least);
        assert!((removed[0].1 - costs[least]).abs() < 1e-9 * costs[least]);
    }

    #[test]
    fn costs_add_up_to_the_error_of_all_that_went() {
        let (h, system, blocks) = drawn(10);
        let (size, n) = (system.size, system.n);
        let mut refitted = System::new(system.w.clone(), system.inverse.clone(), n, 1.0);
        let w = system.w.clone();
        let removed = remove(vec![system], vec![blocks.clone()], 8).unwrap();
        let total: f64 = removed.iter().map(|(_, cost)| cost).sum();
        let all: Vec<usize> =
            removed.iter().flat_map(|(block, _)| blocks[*block].clone()).collect();
        refitted.eliminate(&all);
        let e: Vec<f64> = refitted.w.iter().zip(&w).map(|(a, b)| a - b).collect();
        let expected = error(&h, &e, size, n);
        assert!((total - expected).abs() < 1e-9 * expected, "{total} {expected}");
    }

    #[test]
    fn a_block_goes_by_what_it_costs_in_all() {
        let of = |weight: f64, row_costs: [f64; 3]| {
            let mut inverse = vec![0.0; 9];
            (0..3).for_each(|i| inverse[i * 4] = 1.0 / row_costs[i]);
            System::new(vec![1.0; 3], inverse, 1, weight)
        };
        let rows = || vec![vec![0], vec![1], vec![2]];
        let systems = || vec![of(1.0, [1.0, 2.0, 5.0]), of(2.0, [4.0, 1.0, 0.1])];
        let removed = remove(systems(), vec![rows(), rows()], 3).unwrap();
        assert_eq!(removed.iter().map(|(block, _)| *block).collect::<Vec<_>>(), [1, 2, 0]);
        assert!((removed[0].1 - 4.0).abs() < 1e-12);
        let without = vec![rows(), vec![vec![0], vec![1], vec![]]];
        assert_eq!(remove(systems(), without, 1).unwrap()[0].0, 1);
    }
}
