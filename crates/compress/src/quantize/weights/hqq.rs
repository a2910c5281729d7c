//! Grids without data (Badri and Shaji, "Half-quadratic quantization", 2023): the grid of each block
//! has the least norm ‖W − Ŵ‖ₚ, p = ½, in which few large errors hardly count.
//!
//! As there, the zero point follows from alternating between the errors that are outliers and what is
//! left. Zero points are whole numbers here, as ONNX has them, and the scale is sought too.

use super::super::weight::nearest_within;
use super::grid::{Grid, Levels, PARTS};

const ROUNDS: usize = 6;
/// How sharply outliers are told from the rest at first, in steps of the grid, and how that grows from
/// round to round.
const BETA: f32 = 10.0;
const BETA_GROWTH: f32 = 1.01;

/// The grid of `w` [inputs, outputs] with the least norm in each block.
pub(super) fn grid(w: &[f32], outputs: usize, block: usize, levels: Levels) -> Grid {
    let mut grid = Grid::of_ranges(w, outputs, block, levels);
    let mut values = Vec::new();
    let mut scaled = Vec::new();
    for place in 0..grid.scales.len() {
        let (index, output) = (place / outputs, place % outputs);
        let rows = w.chunks_exact(outputs).skip(index * block).take(block);
        values.clear();
        values.extend(rows.map(|row| row[output]));
        let (scale, zero) = (grid.scales[place], grid.zeros[place]);
        let mut best = (f32::INFINITY, scale, zero);
        for part in PARTS {
            let scale = scale * part;
            scaled.clear();
            scaled.extend(values.iter().map(|w| w / scale));
            let moved = if levels.has_zero_points { moved(&scaled, zero, grid.ends) } else { zero };
            for zero in [zero, moved] {
                let norm = norm(&scaled, zero, grid.ends) * scale.sqrt();
                if norm < best.0 {
                    best = (norm, scale, zero);
                }
            }
        }
        (grid.scales[place], grid.zeros[place]) = (best.1, best.2);
    }
    grid
}

/// Σ √|x − x̂|.
fn norm(values: &[f32], zero: f32, ends: [f32; 2]) -> f32 {
    let error = |x: &f32| (x - (nearest_within(x + zero, ends) - zero)).abs();
    values.iter().map(|x| error(x).sqrt()).sum()
}

/// The zero point that is left when outliers are taken out of the errors, again and again.
fn moved(values: &[f32], mut zero: f32, ends: [f32; 2]) -> f32 {
    let mut beta = BETA;
    for _ in 0..ROUNDS {
        let mut sum = 0.0;
        for &x in values {
            let level = nearest_within(x + zero, ends);
            let error = x - (level - zero);
            let size = error.abs().max(f32::MIN_POSITIVE);
            let outlier = (size - 1.0 / (beta * size.sqrt())).max(0.0).copysign(error);
            sum += level - (x - outlier);
        }
        zero = sum / values.len().max(1) as f32;
        beta *= BETA_GROWTH;
    }
    zero.round_ties_even().clamp(ends[0], ends[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_is_less_than_that_of_the_plain_grid() {
        let mut state = 1_u32;
        let w: Vec<f32> = (0..64 * 4)
            .map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let x = (state >> 8) as f32 / 8_388_608.0 - 1.0;
                if i % 61 == 0 { 5.0 * x } else { x }
            })
            .collect();
        for has_zero_points in [false, true] {
            let levels = Levels { bits: 4, has_zero_points };
            let (plain, found) = (Grid::of_ranges(&w, 4, 16, levels), grid(&w, 4, 16, levels));
            let cost = |grid: &Grid| -> f32 {
                let back = grid.dequantized(&grid.nearest(&w));
                w.iter().zip(back).map(|(w, v)| (w - v).abs().sqrt()).sum()
            };
            assert!(cost(&found) < cost(&plain), "{} {}", cost(&found), cost(&plain));
        }
    }
}
