//! Levels of weights by blocks of inputs: ŵ = (level − zero) · scale.

use attar_tensor::{DType, Tensor};

use super::super::weight::nearest_within;

/// Scales from which they are stored in f16: fewer do not pay for the node that makes them float.
pub(crate) const HALF_MIN: usize = 256;
/// What f16 may move a scale by: half a step of its eleven bits, with room.
const HALF_ERROR_MAX: f32 = 1.0 / 1024.0;

/// Parts of a block's range that are tried for its grid.
pub(super) const PARTS: [f32; 9] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6];

/// A scale and a zero point for each block of inputs of each output.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    /// Inputs of a block; the last may hold fewer.
    pub(crate) block: usize,
    pub(crate) outputs: usize,
    /// The least and the greatest level.
    pub(crate) ends: [f32; 2],
    /// [blocks, outputs].
    pub(crate) scales: Vec<f32>,
    /// The same, whole numbers.
    pub(crate) zeros: Vec<f32>,
}

/// What grids are made for: levels of `bits`, with or without zero points.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Levels {
    pub(crate) bits: u32,
    pub(crate) has_zero_points: bool,
}

impl Levels {
    /// From −2ᵇ⁻¹ to 2ᵇ⁻¹ − 1; symmetric grids do without the least.
    pub(crate) fn ends(self) -> [f32; 2] {
        let half = (1_u32 << (self.bits - 1)) as f32;
        [if self.has_zero_points { -half } else { 1.0 - half }, half - 1.0]
    }
}

impl Grid {
    /// One scale per output, and no zero points.
    pub(crate) fn of_outputs(scales: &[f32], level_max: f32) -> Self {
        Self {
            block: usize::MAX,
            outputs: scales.len(),
            ends: [-level_max, level_max],
            scales: scales.to_vec(),
            zeros: vec![0.0; scales.len()],
        }
    }

    /// The grids of outputs that stand side by side, alike in all else.
    pub(crate) fn beside<'a>(parts: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let first = parts.clone().next();
        let blocks = first.map_or(0, |first| first.scales.len() / first.outputs.max(1));
        let scales: Vec<&[f32]> = parts.clone().map(|part| part.scales.as_slice()).collect();
        let zeros: Vec<&[f32]> = parts.clone().map(|part| part.zeros.as_slice()).collect();
        Self {
            block: first.map_or(usize::MAX, |first| first.block),
            outputs: parts.map(|part| part.outputs).sum(),
            ends: first.map_or([0.0; 2], |first| first.ends),
            scales: beside(&scales, blocks),
            zeros: beside(&zeros, blocks),
        }
    }

    /// The grid over the range of each block of `w` [inputs, outputs].
    pub(crate) fn of_ranges(w: &[f32], outputs: usize, block: usize, levels: Levels) -> Self {
        Self::searched(w, outputs, block, levels, &[1.0], &|_, error| f64::from(error).powi(2))
    }

    /// Of several parts of each block's range, the grid with the least squared error, that of each
    /// input counted `weights` times.
    pub(crate) fn of_least_error(
        w: &[f32],
        outputs: usize,
        block: usize,
        levels: Levels,
        weights: &[f32],
    ) -> Self {
        Self::searched(w, outputs, block, levels, &PARTS, &|input, error| {
            f64::from(weights[input]) * f64::from(error).powi(2)
        })
    }

    fn searched(
        w: &[f32],
        outputs: usize,
        block: usize,
        levels: Levels,
        parts: &[f32],
        cost: &dyn Fn(usize, f32) -> f64,
    ) -> Self {
        let ends = levels.ends();
        let mut grid = Self { block, outputs, ends, scales: Vec::new(), zeros: Vec::new() };
        for (index, rows) in w.chunks(block.max(1).saturating_mul(outputs.max(1))).enumerate() {
            let (mut low, mut high) = (vec![0.0_f32; outputs], vec![0.0_f32; outputs]);
            for row in rows.chunks_exact(outputs) {
                for ((low, high), &w) in low.iter_mut().zip(&mut high).zip(row) {
                    (*low, *high) = (low.min(w), high.max(w));
                }
            }
            let mut best: Vec<(f64, f32, f32)> = vec![(f64::INFINITY, 1.0, 0.0); outputs];
            for part in parts {
                let tried: Vec<(f32, f32)> = (low.iter().zip(&high))
                    .map(|(low, high)| over(low * part, high * part, levels))
                    .collect();
                let mut lost = vec![0.0_f64; outputs];
                if parts.len() > 1 {
                    for (i, row) in rows.chunks_exact(outputs).enumerate() {
                        let input = index * block + i;
                        for ((lost, &w), &(scale, zero)) in lost.iter_mut().zip(row).zip(&tried) {
                            let level = nearest_within(w / scale + zero, ends);
                            *lost += cost(input, w - (level - zero) * scale);
                        }
                    }
                }
                for ((best, lost), (scale, zero)) in best.iter_mut().zip(lost).zip(tried) {
                    if lost < best.0 {
                        *best = (lost, scale, zero);
                    }
                }
            }
            grid.scales.extend(best.iter().map(|best| best.1));
            grid.zeros.extend(best.iter().map(|best| best.2));
        }
        grid
    }

    /// Scales and zero points of all outputs for one input.
    pub(crate) fn row(&self, input: usize) -> (&[f32], &[f32]) {
        let at = input / self.block * self.outputs;
        (&self.scales[at..at + self.outputs], &self.zeros[at..at + self.outputs])
    }

    /// Gives each block of each output the scale of least squared error for the nearest levels of `w`.
    pub(crate) fn fit_scales(&mut self, w: &[f32]) {
        let n = self.outputs;
        let (mut gain, mut power) =
            (vec![0.0_f64; self.scales.len()], vec![0.0_f64; self.scales.len()]);
        let levels = self.nearest(w);
        let rows = w.chunks_exact(n.max(1)).zip(levels.chunks_exact(n.max(1)));
        for (input, (row, levels)) in rows.enumerate() {
            let first = input / self.block * n;
            for (column, (&w, &level)) in row.iter().zip(levels).enumerate() {
                let q = f64::from(f32::from(level) - self.zeros[first + column]);
                gain[first + column] += f64::from(w) * q;
                power[first + column] += q * q;
            }
        }
        for (scale, (gain, power)) in self.scales.iter_mut().zip(gain.into_iter().zip(power)) {
            let best = (gain / power) as f32;
            if best.is_normal() && best > 0.0 {
                *scale = best;
            }
        }
    }

    /// Rounds the scales to f16, where that is possible and worth it. Returns whether it did.
    pub(crate) fn halve_scales(&mut self) -> bool {
        let halved = halved(&self.scales);
        let is_halved = halved.is_some();
        self.scales = halved.unwrap_or_else(|| std::mem::take(&mut self.scales));
        is_halved
    }

    /// The level nearest to `w`.
    #[inline]
    pub(crate) fn level(&self, w: f32, scale: f32, zero: f32) -> f32 {
        nearest_within(w / scale + zero, self.ends)
    }

    /// The nearest level of every weight.
    pub(crate) fn nearest(&self, w: &[f32]) -> Vec<i8> {
        let mut levels = Vec::with_capacity(w.len());
        for (input, row) in w.chunks_exact(self.outputs.max(1)).enumerate() {
            let (scales, zeros) = self.row(input);
            let parameters = scales.iter().zip(zeros);
            let level =
                |(w, (scale, zero)): (&f32, (&f32, &f32))| self.level(*w, *scale, *zero) as i8;
            levels.extend(row.iter().zip(parameters).map(level));
        }
        levels
    }

    /// What the levels stand for.
    pub(crate) fn dequantized(&self, levels: &[i8]) -> Vec<f32> {
        let mut values = Vec::with_capacity(levels.len());
        for (input, row) in levels.chunks_exact(self.outputs.max(1)).enumerate() {
            let (scales, zeros) = self.row(input);
            let real =
                |(level, (scale, zero)): (&i8, (&f32, &f32))| (f32::from(*level) - zero) * scale;
            values.extend(row.iter().zip(scales.iter().zip(zeros)).map(real));
        }
        values
    }
}

/// Matrices of so many rows each, side by side.
pub(super) fn beside<T: Copy>(parts: &[&[T]], rows: usize) -> Vec<T> {
    let row = |row: usize| {
        parts.iter().flat_map(move |part| {
            let width = part.len() / rows;
            &part[row * width..][..width]
        })
    };
    (0..rows).flat_map(row).copied().collect()
}

/// Scales rounded to f16; `None` where they are few, or one is too small or too large for it.
pub(crate) fn halved(scales: &[f32]) -> Option<Vec<f32>> {
    if scales.len() < HALF_MIN {
        return None;
    }
    let half = Tensor::new(&[scales.len()], scales).converted(DType::F16);
    let back = half.and_then(|half| half.converted(DType::F32));
    let halved = back.expect("floats convert to floats").slice::<f32>().to_vec();
    let is_near = |(half, scale): (&f32, &f32)| (half - scale).abs() <= HALF_ERROR_MAX * scale;
    halved.iter().zip(scales).all(is_near).then_some(halved)
}

/// Scale and zero point of the grid over `low..=high`, which hold 0.
pub(super) fn over(low: f32, high: f32, levels: Levels) -> (f32, f32) {
    let [first, last] = levels.ends();
    let (scale, zero) = if levels.has_zero_points {
        let scale = high / (last - first) - low / (last - first);
        (scale, (first - low / scale).round_ties_even().clamp(first, last))
    } else {
        (high.max(-low) / last, 0.0)
    };
    if scale < f32::MIN_POSITIVE { (1.0, 0.0) } else { (scale, zero) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: Levels = Levels { bits: 4, has_zero_points: false };
    const SHIFTED: Levels = Levels { bits: 4, has_zero_points: true };

    #[test]
    fn each_block_of_each_output_has_its_own_range() {
        // Two outputs, blocks of two inputs.
        let w = [7.0, -0.7, -3.5, 0.1, 0.0, 1.4, 0.0, -1.4];
        let grid = Grid::of_ranges(&w, 2, 2, SIGNED);
        let expected = [1.0, 0.1, 1.0, 0.2];
        assert!(grid.scales.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{grid:?}");
        assert_eq!(grid.nearest(&w), [7, -7, -4, 1, 0, 7, 0, -7]);
    }

    #[test]
    fn zero_is_a_level_whatever_the_range() {
        let w = [3.0, -1.0, 5.0, -3.0];
        let grid = Grid::of_ranges(&w, 2, 2, SHIFTED);
        let levels = grid.nearest(&[0.0; 4]);
        assert_eq!(grid.dequantized(&levels), [0.0; 4]);
        // From 0 to 5 over all sixteen levels.
        assert_eq!((grid.scales[0], grid.zeros[0]), (5.0 / 15.0, -8.0));
    }

    #[test]
    fn a_part_of_the_range_is_taken_where_it_loses_less() {
        // One outlier among sixteen, of little weight.
        let mut w: Vec<f32> = (0..16).map(|i| (i as f32 - 8.0) / 8.0).collect();
        w[0] = 2.0;
        let mut weights = [1.0_f32; 16];
        weights[0] = 1e-4;
        let lost = |grid: &Grid| -> f32 {
            let back = grid.dequantized(&grid.nearest(&w));
            (w.iter().zip(back).zip(&weights)).map(|((w, v), by)| by * (w - v).powi(2)).sum()
        };
        let searched = Grid::of_least_error(&w, 1, 16, SIGNED, &weights);
        let plain = Grid::of_ranges(&w, 1, 16, SIGNED);
        assert!(lost(&searched) < 0.7 * lost(&plain), "{searched:?}");
    }

    #[test]
    fn scales_that_fit_lose_less() {
        let mut state = 9_u32;
        let w: Vec<f32> = (0..64 * 3)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) as f32 / 8_388_608.0 - 1.0).powi(3)
            })
            .collect();
        let lost = |grid: &Grid| -> f64 {
            let back = grid.dequantized(&grid.nearest(&w));
            w.iter().zip(back).map(|(w, v)| f64::from(w - v).powi(2)).sum()
        };
        let mut grid = Grid::of_ranges(&w, 3, 32, SHIFTED);
        let mut before = lost(&grid);
        for _ in 0..3 {
            grid.fit_scales(&w);
            let after = lost(&grid);
            assert!(after < before, "{after} of {before}");
            before = after;
        }
        let mut zeros = Grid::of_ranges(&[0.0; 4], 2, 2, SHIFTED);
        zeros.fit_scales(&[0.0; 4]);
        assert_eq!(zeros.scales, [1.0, 1.0]);
    }

    #[test]
    fn scales_that_f16_cannot_tell_apart_stay() {
        let grid = |scales: Vec<f32>| Grid {
            block: 16,
            outputs: 1,
            ends: [-7.0, 7.0],
            zeros: vec![0.0; scales.len()],
            scales,
        };
        let scales: Vec<f32> = (0..HALF_MIN).map(|i| 0.001 + 1e-5 * i as f32).collect();
        let mut halved = grid(scales.clone());
        assert!(halved.halve_scales());
        let moved = halved.scales.iter().zip(&scales).map(|(a, b)| (a / b - 1.0).abs());
        assert!(moved.clone().all(|by| by <= 1.0 / 2048.0) && moved.sum::<f32>() > 0.0);
        // Below 2⁻¹⁴ steps of f16 no longer shrink; beyond 65504 there is infinity.
        for wrong in [1e-7, 1e6] {
            let mut grid = grid(scales.iter().map(|scale| scale.min(wrong).max(wrong)).collect());
            assert!(!grid.halve_scales());
            assert_eq!(grid.scales[0], wrong);
        }
        assert!(!grid(vec![0.1; HALF_MIN - 1]).halve_scales(), "not worth a node");
    }

    #[test]
    fn blocks_of_zeros_have_a_scale() {
        for levels in [SIGNED, SHIFTED] {
            let grid = Grid::of_ranges(&[0.0; 4], 2, 2, levels);
            assert_eq!(grid.scales, [1.0, 1.0]);
            assert_eq!(grid.dequantized(&grid.nearest(&[0.0; 4])), [0.0; 4]);
        }
    }
}
