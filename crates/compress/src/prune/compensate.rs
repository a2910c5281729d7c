//! Second-order pruning of one matrix (Hassibi and Stork, "Optimal brain surgeon", 1992; as
//! Frantar and Alistarh, "`SparseGPT`", 2023, arXiv:2301.00774, in the form of
//! [`gptq`](crate::quantize::gptq)).
//!
//! For rows X and weights W [inputs, outputs] the error of the product is Σ eᵀ·H·e over outputs,
//! with e = w − ŵ and H = XᵀX = L·Lᵀ. Inputs are decided from the last to the first. What was
//! decided so far moves input k to tₖ = wₖ + Σ over i > k of eᵢ·L[i, k] / L[k, k]; removing it then
//! costs tₖ²·L[k, k]², the inputs before it being free to make up for it. At the end the weights
//! that stay are the least-squares solution among themselves, by conjugate gradients.

use std::ops::Range;

use attar_ops::logits::weighted_rows;

use super::Cut;
use crate::Fraction;
use crate::quantize::gptq::cholesky;

/// Inputs decided before their errors are handed on by a product, and, for single weights, among
/// which those that go are chosen.
const BLOCK: usize = 128;
/// Against what a sample did not show: this part of a mean channel is added to each.
const RIDGE: f32 = 0.01;
/// Steps of conjugate gradients, and the part of the first residual at which they end.
const STEPS_MAX: usize = 40;
const RESIDUAL: f64 = 1e-4;

/// What goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Choice {
    Sparsity(Fraction),
    /// Of every `of` successive inputs of a run, `kept` stay.
    Kept {
        kept: usize,
        of: usize,
    },
}

/// A matrix on the way.
pub(super) struct Problem<'a> {
    /// [inputs, outputs].
    pub(super) w: &'a [f32],
    pub(super) outputs: usize,
    /// XᵀX [inputs, inputs].
    pub(super) h: &'a [f32],
    /// Successive inputs of one tap.
    pub(super) run: usize,
}

impl Problem<'_> {
    /// The weights that remain, and zeros. `None` where the moments are of no use.
    pub(super) fn solve(&self, choice: Choice) -> Option<Vec<f32>> {
        let h = self.ridged()?;
        let (weights, marks) = self.decide(choice, &cholesky(h.clone(), self.inputs())?);
        Some(self.refit(&h, weights, &marks))
    }

    fn inputs(&self) -> usize {
        self.w.len() / self.outputs.max(1)
    }

    fn ridged(&self) -> Option<Vec<f32>> {
        let size = self.inputs();
        let trace: f64 = (0..size).map(|k| f64::from(self.h[k * size + k])).sum();
        let ridge = RIDGE * (trace / size as f64) as f32;
        if !(ridge.is_finite() && ridge > 0.0) {
            return None;
        }
        let mut h = self.h.to_vec();
        (0..size).for_each(|k| h[k * size + k] += ridge);
        Some(h)
    }

    /// Decides input after input by the factor `l`: weights, and which are gone.
    fn decide(&self, choice: Choice, l: &[f32]) -> (Vec<f32>, Vec<bool>) {
        let (size, n) = (self.inputs(), self.outputs);
        let mut weights = self.w.to_vec();
        let mut marks = vec![false; size * n];
        let mut errors = vec![0.0_f32; size * n];
        for units in self.blocks(choice).iter().rev() {
            let (first, end) = (units[0].start, units[units.len() - 1].end);
            let width = end - first;
            let mut targets = vec![0.0_f32; width * n];
            if end < size {
                // Columns first..end of L below the block, against the errors there.
                let below: Vec<f32> = (end..size)
                    .flat_map(|row| l[row * size + first..row * size + end].iter().copied())
                    .collect();
                weighted_rows(&mut targets, &below, &errors[end * n..], [size - end, width], true);
            }
            for unit in units.iter().rev() {
                for k in unit.clone() {
                    let target = &targets[(k - first) * n..][..n];
                    let diagonal = l[k * size + k];
                    let moved = weights[k * n..][..n].iter_mut().zip(target);
                    moved.for_each(|(w, target)| *w += target / diagonal);
                }
                // What the unit's own errors move is still to come: it begins where it was.
                self.mark(choice, unit, &weights, l, &mut marks);
                for k in unit.clone().rev() {
                    let diagonal = l[k * size + k];
                    for column in 0..n {
                        let at = k * n + column;
                        let target = targets[(k - first) * n + column];
                        let wanted = self.w[at] + target / diagonal;
                        weights[at] = if marks[at] { 0.0 } else { wanted };
                        errors[at] = self.w[at] - weights[at];
                    }
                    let error = &errors[k * n..(k + 1) * n];
                    for (i, target) in targets[..(k - first) * n].chunks_exact_mut(n).enumerate() {
                        let factor = l[k * size + first + i];
                        target.iter_mut().zip(error).for_each(|(target, e)| *target += factor * e);
                    }
                }
            }
        }
        (weights, marks)
    }

    /// Ranges of inputs that are chosen among, packed into blocks.
    fn blocks(&self, choice: Choice) -> Vec<Vec<Range<usize>>> {
        let size = self.inputs();
        let (run, of) = match choice {
            Choice::Sparsity(_) => (size, BLOCK),
            Choice::Kept { of, .. } => (self.run, of),
        };
        let mut blocks: Vec<Vec<Range<usize>>> = Vec::new();
        for first in (0..size).step_by(run.max(1)) {
            let end = (first + run).min(size);
            for start in (first..end).step_by(of) {
                let unit = start..(start + of).min(end);
                match blocks.last_mut().filter(|units| unit.end - units[0].start <= BLOCK) {
                    Some(units) => units.push(unit),
                    None => blocks.push(vec![unit]),
                }
            }
        }
        blocks
    }

    /// Marks those of a unit that cost least.
    fn mark(
        &self,
        choice: Choice,
        unit: &Range<usize>,
        weights: &[f32],
        l: &[f32],
        marks: &mut [bool],
    ) {
        let (size, n) = (self.inputs(), self.outputs);
        let cost = |k: usize, column: usize| {
            let moved = weights[k * n + column] * l[k * size + k];
            (moved * moved).min(f32::MAX)
        };
        match choice {
            Choice::Sparsity(sparsity) => {
                let done = |inputs: usize| sparsity.of(size * n) - sparsity.of(inputs * n);
                let count = done(unit.start) - done(unit.end);
                let costs: Vec<f32> = unit
                    .clone()
                    .flat_map(|k| (0..n).map(move |column| (k, column)))
                    .map(|(k, column)| cost(k, column))
                    .collect();
                let mut cut = Cut::of(&costs, count);
                let own = marks[unit.start * n..unit.end * n].iter_mut();
                own.zip(costs).for_each(|(mark, cost)| *mark = cut.takes(cost));
            }
            Choice::Kept { kept, of } if unit.len() == of => {
                for column in 0..n {
                    let costs: Vec<f32> = unit.clone().map(|k| cost(k, column)).collect();
                    let mut cut = Cut::of(&costs, of - kept);
                    for (k, cost) in unit.clone().zip(costs) {
                        marks[k * n + column] = cut.takes(cost);
                    }
                }
            }
            Choice::Kept { .. } => {}
        }
    }

    /// Of the weights that are not marked the least squares, from `weights` on: for each output,
    /// conjugate gradients on its own rows and columns of H, scaled by their diagonal.
    fn refit(&self, h: &[f32], mut weights: Vec<f32>, marks: &[bool]) -> Vec<f32> {
        let (size, n) = (self.inputs(), self.outputs);
        let times_h = |values: &[f32]| {
            let mut product = vec![0.0_f32; values.len()];
            weighted_rows(&mut product, h, values, [size, size], false);
            product.iter_mut().zip(marks).filter(|(_, mark)| **mark).for_each(|(x, _)| *x = 0.0);
            product
        };
        let scaled = |r: &[f32]| -> Vec<f32> {
            (0..r.len()).map(|at| r[at] / h[at / n * size + at / n]).collect()
        };
        let missing: Vec<f32> = self.w.iter().zip(&weights).map(|(w, found)| w - found).collect();
        let mut r = times_h(&missing);
        let mut z = scaled(&r);
        let mut p = z.clone();
        let mut power = column_products(&r, &z, n);
        let first = power.clone();
        for _ in 0..STEPS_MAX {
            let pending =
                power.iter().zip(&first).any(|(now, first)| *now > RESIDUAL * RESIDUAL * first);
            if !pending {
                break;
            }
            let hp = times_h(&p);
            let curvature = column_products(&p, &hp, n);
            let rate = |column: usize| {
                if curvature[column] > 0.0 {
                    (power[column] / curvature[column]) as f32
                } else {
                    0.0
                }
            };
            let rates: Vec<f32> = (0..n).map(rate).collect();
            for (at, weight) in weights.iter_mut().enumerate() {
                *weight += rates[at % n] * p[at];
                r[at] -= rates[at % n] * hp[at];
            }
            z = scaled(&r);
            let next = column_products(&r, &z, n);
            let share = |column: usize| {
                if power[column] > 0.0 { (next[column] / power[column]) as f32 } else { 0.0 }
            };
            let shares: Vec<f32> = (0..n).map(share).collect();
            p.iter_mut().zip(&z).enumerate().for_each(|(at, (p, z))| *p = z + shares[at % n] * *p);
            power = next;
        }
        weights
    }
}

/// Σ a·b of each column.
fn column_products(a: &[f32], b: &[f32], n: usize) -> Vec<f64> {
    let mut sums = vec![0.0_f64; n];
    for (a, b) in a.chunks_exact(n).zip(b.chunks_exact(n)) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += f64::from(a * b));
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_train::Rng;

    fn problem(size: usize, n: usize) -> (Vec<f32>, Vec<f32>) {
        let mut rng = Rng::new(&[11]);
        let rows = 3 * size;
        let shared: Vec<f32> = (0..rows).map(|_| rng.normal() as f32).collect();
        let x: Vec<f32> =
            (0..rows * size).map(|i| rng.normal() as f32 + shared[i / size]).collect();
        let mut h = vec![0.0; size * size];
        weighted_rows(&mut h, &x, &x, [rows, size], true);
        let w = (0..size * n).map(|_| rng.normal() as f32).collect();
        (w, h)
    }

    /// x with a·x = b, in f64, by elimination with pivots; `a` is [size, size].
    fn solved(mut a: Vec<f64>, mut b: Vec<f64>) -> Vec<f64> {
        let size = b.len();
        for k in 0..size {
            let pivot =
                (k..size).max_by(|&i, &j| a[i * size + k].abs().total_cmp(&a[j * size + k].abs()));
            let pivot = pivot.unwrap();
            (0..size).for_each(|column| a.swap(k * size + column, pivot * size + column));
            b.swap(k, pivot);
            for row in (0..size).filter(|&row| row != k) {
                let factor = a[row * size + k] / a[k * size + k];
                (0..size)
                    .for_each(|column| a[row * size + column] -= factor * a[k * size + column]);
                b[row] -= factor * b[k];
            }
        }
        (0..size).map(|k| b[k] / a[k * size + k]).collect()
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().copied().map(f64::from).collect()
    }

    #[test]
    fn each_removal_moves_the_others_as_the_inverse_of_their_moments_says() {
        let (size, n) = (24, 5);
        let (w, h) = problem(size, n);
        let problem = Problem { w: &w, outputs: n, h: &h, run: size };
        let h = problem.ridged().unwrap();
        let l = cholesky(h.clone(), size).unwrap();
        for choice in [Choice::Sparsity(Fraction::HALF), Choice::Kept { kept: 2, of: 4 }] {
            let (found, marks) = problem.decide(choice, &l);
            assert_eq!(marks.iter().filter(|mark| **mark).count(), size * n / 2);
            for column in 0..n {
                let mut expected: Vec<f64> =
                    (0..size).map(|k| f64::from(w[k * n + column])).collect();
                for k in (0..size).rev().filter(|k| marks[k * n + column]) {
                    // δ = −wₖ / [H⁻¹]ₖₖ · H⁻¹eₖ, of the inputs that are still free: 0..=k.
                    let free = k + 1;
                    let part = (0..free).flat_map(|row| wide(&h[row * size..row * size + free]));
                    let mut unit = vec![0.0; free];
                    unit[k] = 1.0;
                    let inverse = solved(part.collect(), unit);
                    let factor = expected[k] / inverse[k];
                    (0..free).for_each(|i| expected[i] -= factor * inverse[i]);
                    expected[k] = 0.0;
                }
                for (k, expected) in expected.iter().enumerate() {
                    let found = f64::from(found[k * n + column]);
                    // Sums in f32 of weights of about 1.
                    assert!((found - expected).abs() < 2e-4, "{k}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn what_stays_is_the_least_squares_solution() {
        let (size, n) = (40, 3);
        let (w, h) = problem(size, n);
        let problem = Problem { w: &w, outputs: n, h: &h, run: size };
        let found = problem.solve(Choice::Sparsity(Fraction::HALF)).unwrap();
        assert_eq!(found.iter().filter(|w| **w == 0.0).count(), size * n / 2);
        let h = wide(&problem.ridged().unwrap());
        for column in 0..n {
            let kept: Vec<usize> = (0..size).filter(|k| found[k * n + column] != 0.0).collect();
            let part = kept.iter().flat_map(|&i| kept.iter().map(move |&j| (i, j)));
            let a = part.map(|(i, j)| h[i * size + j]).collect();
            let right = |&i: &usize| {
                (0..size).map(|j| h[i * size + j] * f64::from(w[j * n + column])).sum::<f64>()
            };
            let expected = solved(a, kept.iter().map(right).collect());
            for (&k, expected) in kept.iter().zip(expected) {
                let found = f64::from(found[k * n + column]);
                // Conjugate gradients end at 1e-4 of what was missing.
                assert!((found - expected).abs() < 2e-3, "{k}: {found} {expected}");
            }
        }
    }

    /// Σ eᵀ·H·e.
    fn cost(w: &[f32], found: &[f32], h: &[f32], n: usize) -> f64 {
        let e: Vec<f32> = w.iter().zip(found).map(|(w, found)| w - found).collect();
        let mut he = vec![0.0; e.len()];
        let size = e.len() / n;
        weighted_rows(&mut he, h, &e, [size, size], false);
        e.iter().zip(&he).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    #[test]
    fn the_error_is_far_below_that_of_the_least_weights() {
        let (size, n) = (300, 4);
        let (w, h) = problem(size, n);
        let problem = Problem { w: &w, outputs: n, h: &h, run: size };
        let magnitudes: Vec<f32> = w.iter().map(|w| w.abs()).collect();
        let mut cut = Cut::of(&magnitudes, size * n / 2);
        let by_magnitude: Vec<f32> =
            w.iter().map(|&w| if cut.takes(w.abs()) { 0.0 } else { w }).collect();
        let bound = cost(&w, &by_magnitude, &h, n);
        let found = problem.solve(Choice::Sparsity(Fraction::HALF)).unwrap();
        assert_eq!(found.iter().filter(|w| **w == 0.0).count(), size * n / 2);
        let second_order = cost(&w, &found, &h, n);
        assert!(second_order < 0.55 * bound, "{second_order} of {bound}");
    }

    #[test]
    fn moments_of_nothing_are_of_no_use() {
        let problem = Problem { w: &[1.0, 2.0], outputs: 1, h: &[0.0; 4], run: 2 };
        assert!(problem.solve(Choice::Sparsity(Fraction::HALF)).is_none());
    }
}
