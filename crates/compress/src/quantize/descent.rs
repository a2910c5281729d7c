//! Levels and scales by coordinate descent: the loss and the choice of AdaRound (Nagel et al.,
//! 2020), searched as by QuantEase (Behdin et al., 2023).
//!
//! The loss of a layer, eᵀ·H·e with e = w − ŵ and H = XᵀX, is quadratic, so that what one level more
//! or less of one weight changes is known exactly: Δ²·H[k, k] ∓ 2·Δ·(H·e)[k]. Every weight in turn
//! moves between the two levels around its value while that gains, all outputs side by side; and
//! each scale has one best value, given its levels. AdaRound itself relaxes the choice and follows
//! gradients; with exact steps from a good start there is no rate and no penalty to set.

use std::ops::Range;

use attar_ops::logits::{Columns, add_weighted, weighted_rows};

use super::weights::Grid;

/// Passes over all inputs.
const SWEEPS: usize = 4;
/// Inputs whose moves are handed on together to those after them.
const BLOCK: usize = 64;

/// H·e, true for the inputs still to come while those before them move.
struct Slopes<'a> {
    h: &'a [f32],
    size: usize,
    outputs: usize,
    /// [size, outputs].
    of: Vec<f32>,
}

impl<'a> Slopes<'a> {
    fn new(w: &[f32], grid: &Grid, h: &'a [f32], levels: &[i8]) -> Self {
        let outputs = grid.outputs;
        let size = w.len() / outputs.max(1);
        let e: Vec<f32> = w.iter().zip(grid.dequantized(levels)).map(|(w, v)| w - v).collect();
        let mut of = vec![0.0_f32; w.len()];
        weighted_rows(&mut of, h, &e, [size, size], false);
        Self { h, size, outputs, of }
    }

    /// The weights of `inputs` moved by `moved` [inputs, outputs]: what that changes after them.
    fn hand_on(&mut self, inputs: Range<usize>, moved: &[f32]) {
        let (end, size, outputs) = (inputs.end, self.size, self.outputs);
        if end == size || moved.iter().all(|&step| step == 0.0) {
            return;
        }
        let h = &self.h[inputs.start * size..end * size];
        let after = Columns { rows: h, width: size, columns: end..size };
        let moved = Columns { rows: moved, width: outputs, columns: 0..outputs };
        add_weighted(&mut self.of[end * outputs..], after, moved, -1.0);
    }
}

/// Improves `levels` [size, outputs] of `w`, by the moments `h` [size, size].
pub(crate) fn refine(w: &[f32], grid: &Grid, h: &[f32], mut levels: Vec<i8>) -> Vec<i8> {
    let n = grid.outputs;
    let size = w.len() / n.max(1);
    let [least, greatest] = grid.ends;
    for _ in 0..SWEEPS {
        // Anew in every sweep, against sums of rounding errors.
        let mut slopes = Slopes::new(w, grid, h, &levels);
        let mut moves = 0;
        for first in (0..size).step_by(BLOCK) {
            let end = (first + BLOCK).min(size);
            let mut moved = vec![0.0_f32; (end - first) * n];
            for k in first..end {
                let own = h[k * size + k];
                let (scales, zeros) = grid.row(k);
                let change = &mut moved[(k - first) * n..][..n];
                for column in 0..n {
                    let at = k * n + column;
                    let (slope, scale) = (slopes.of[at], scales[column]);
                    // ŵ moves by `step`: the loss changes by step²·own − 2·step·slope.
                    let step = scale.copysign(slope);
                    let level = f32::from(levels[at]) + step.signum();
                    let is_near = (w[at] / scale + zeros[column] - level).abs() <= 1.0;
                    let is_level = (least..=greatest).contains(&level);
                    if is_near && is_level && step * step * own - 2.0 * step * slope < 0.0 {
                        levels[at] = level as i8;
                        change[column] = step;
                        moves += 1;
                    }
                }
                if change.iter().all(|&step| step == 0.0) {
                    continue;
                }
                for row in k + 1..end {
                    let factor = h[row * size + k];
                    let slopes = &mut slopes.of[row * n..][..n];
                    let steps = slopes.iter_mut().zip(&*change);
                    steps.for_each(|(slope, step)| *slope -= factor * step);
                }
            }
            slopes.hand_on(first..end, &moved);
        }
        if moves == 0 {
            break;
        }
    }
    levels
}

/// Gives each block of each output the scale that loses least with `levels`, one after the other.
pub(crate) fn refine_scales(w: &[f32], grid: &mut Grid, h: &[f32], levels: &[i8]) {
    let n = grid.outputs;
    let size = w.len() / n.max(1);
    let mut slopes = Slopes::new(w, grid, h, levels);
    let width = grid.block.clamp(1, size.max(1));
    for (block, first) in (0..size).step_by(width).enumerate() {
        let inputs = first..(first + width).min(size);
        let zeros = &grid.zeros[block * n..][..n];
        let levels = levels[first * n..inputs.end * n].chunks_exact(n);
        let mut q: Vec<f32> = levels
            .flat_map(|row| row.iter().zip(zeros).map(|(&level, zero)| f32::from(level) - zero))
            .collect();
        let mut hq = vec![0.0_f32; q.len()];
        let rows = &h[first * size..inputs.end * size];
        let own = Columns { rows, width: size, columns: inputs.clone() };
        add_weighted(&mut hq, own, Columns { rows: &q, width: n, columns: 0..n }, 1.0);
        let (mut gain, mut curve) = (vec![0.0_f64; n], vec![0.0_f64; n]);
        let rows = q.chunks_exact(n).zip(hq.chunks_exact(n));
        for ((q, hq), slopes) in rows.zip(slopes.of[first * n..].chunks_exact(n)) {
            for column in 0..n {
                gain[column] += f64::from(q[column]) * f64::from(slopes[column]);
                curve[column] += f64::from(q[column]) * f64::from(hq[column]);
            }
        }
        let mut steps = vec![0.0_f32; n];
        for (column, scale) in grid.scales[block * n..][..n].iter_mut().enumerate() {
            let best = *scale + (gain[column] / curve[column]) as f32;
            // Far from where it was, levels would be others: that is for the next round.
            if (0.5 * *scale..=2.0 * *scale).contains(&best) {
                steps[column] = best - *scale;
                *scale = best;
            }
        }
        for row in q.chunks_exact_mut(n) {
            row.iter_mut().zip(&steps).for_each(|(q, step)| *q *= step);
        }
        slopes.hand_on(inputs, &q);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::weights::Levels;

    /// 8 bits of one output.
    fn wide() -> Grid {
        Grid::of_outputs(&[1.0], 127.0)
    }

    #[test]
    fn the_pair_of_levels_with_the_least_error_is_found() {
        // Both weights lie a little below the middle: rounded down, their errors add up.
        let h = [1.0, 0.9, 0.9, 1.0];
        let levels = refine(&[0.45, 0.45], &wide(), &h, vec![0, 0]);
        assert_eq!(levels.iter().map(|&level| i32::from(level)).sum::<i32>(), 1, "{levels:?}");
        let alone = refine(&[0.45, 0.45], &wide(), &[1.0, 0.0, 0.0, 1.0], vec![0, 0]);
        assert_eq!(alone, [0, 0]);
    }

    #[test]
    fn a_level_never_leaves_its_bound() {
        let h = [1.0, 0.99, 0.99, 1.0];
        let levels = refine(&[6.9, 0.45], &Grid::of_outputs(&[1.0], 7.0), &h, vec![7, 0]);
        assert!(levels.iter().all(|level| level.abs() <= 7), "{levels:?}");
    }

    #[test]
    fn rounds_of_levels_and_scales_lose_less_every_time() {
        // Several blocks of the descent and of the grid, with zero points; the last not full.
        let (size, n) = (2 * BLOCK + 7, 3);
        let at = |i: usize| ((i * 7919 + i * i % 83) % 211) as f32 / 105.0 - 1.0;
        let w: Vec<f32> = (0..size * n).map(at).collect();
        let x: Vec<f32> = (0..4 * size * size).map(|i| at(i * 31) + at(i / size)).collect();
        let mut h = vec![0.0; size * size];
        weighted_rows(&mut h, &x, &x, [4 * size, size], true);
        let mut grid = Grid::of_ranges(&w, n, 48, Levels { bits: 4, has_zero_points: true });
        let lost = |grid: &Grid, levels: &[i8]| -> f64 {
            let slopes = Slopes::new(&w, grid, &h, levels);
            let e = w.iter().zip(grid.dequantized(levels)).map(|(w, v)| w - v);
            e.zip(&slopes.of).map(|(e, slope)| f64::from(e * slope)).sum()
        };
        let mut levels = grid.nearest(&w);
        let mut before = lost(&grid, &levels);
        for _ in 0..2 {
            levels = refine(&w, &grid, &h, levels);
            let rounded = lost(&grid, &levels);
            refine_scales(&w, &mut grid, &h, &levels);
            let scaled = lost(&grid, &levels);
            assert!(rounded < before && scaled < rounded, "{before} {rounded} {scaled}");
            before = scaled;
        }
    }

    #[test]
    fn a_scale_is_that_of_the_least_squares() {
        // One weight per block: the scale that gives it exactly, if it is near.
        let mut grid = wide();
        refine_scales(&[3.3], &mut grid, &[2.0], &[3]);
        assert!((grid.scales[0] - 1.1).abs() < 1e-6, "{grid:?}");
        let mut grid = wide();
        refine_scales(&[3.3], &mut grid, &[2.0], &[0]);
        assert_eq!(grid.scales, [1.0]);
    }
}
