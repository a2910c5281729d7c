//! Rounding a channel of weights so that no pair of neighbours can saturate 16 bits.

use super::LevelRange;
use crate::quantize::nearest_level;

/// How much coarser grids are tried, as the level that a weight of level 127 gets. With 64 no pair is
/// at risk.
const LEVELS: [f32; 8] = [120.0, 112.0, 104.0, 96.0, 88.0, 80.0, 72.0, 64.0];

/// The scale of least squared error for a channel, pairs at risk being moved to where they are safe;
/// `None` where no pair is at risk on the given one.
///
/// A coarser grid costs every weight a little, a moved pair costs two weights much; where the
/// largest weight has a large neighbour the first is better, and it is at most one bit.
pub(crate) fn safe_scale(
    weights: &[f32],
    pairs: &[(usize, usize)],
    scale: f32,
    level_max: i8,
) -> Option<f32> {
    let range = LevelRange::ALL;
    let mut levels = vec![0; weights.len()];
    round(weights, scale, level_max, &mut levels);
    if !pairs.iter().any(|&(a, b)| range.saturates(levels[a], levels[b])) {
        return None;
    }
    move_pairs(&mut levels, pairs, range);
    let mut best = (error(weights, scale, &levels), scale);
    for level in LEVELS {
        let coarser = scale * (127.0 / level);
        round(weights, coarser, level_max, &mut levels);
        move_pairs(&mut levels, pairs, range);
        let error = error(weights, coarser, &levels);
        if error < best.0 {
            best = (error, coarser);
        }
    }
    Some(best.1)
}

fn round(weights: &[f32], scale: f32, level_max: i8, levels: &mut [i8]) {
    for (level, &weight) in levels.iter_mut().zip(weights) {
        *level = level_of(weight, scale, level_max);
    }
}

/// Σ (w − scale·level)², in parts that do not wait for each other.
fn error(weights: &[f32], scale: f32, levels: &[i8]) -> f32 {
    const PARTS: usize = 8;
    let square = |w: f32, level: i8| (w / scale - f32::from(level)).powi(2);
    let mut sums = [0.0_f32; PARTS];
    let (weights, weights_rest) = weights.as_chunks::<PARTS>();
    let (levels, levels_rest) = levels.as_chunks::<PARTS>();
    for (weights, levels) in weights.iter().zip(levels) {
        for part in 0..PARTS {
            sums[part] += square(weights[part], levels[part]);
        }
    }
    let rest = weights_rest.iter().zip(levels_rest).map(|(&w, &level)| square(w, level));
    (sums.iter().sum::<f32>() + rest.sum::<f32>()) * scale * scale
}

fn level_of(weight: f32, scale: f32, level_max: i8) -> i8 {
    nearest_level(weight / scale, f32::from(level_max)) as i8
}

/// Moves each pair that can saturate towards zero, both by as much, until it cannot; how many moved.
pub(crate) fn move_pairs(levels: &mut [i8], pairs: &[(usize, usize)], range: LevelRange) -> usize {
    let mut moved = 0;
    for &(a, b) in pairs {
        if range.saturates(levels[a], levels[b]) {
            moved += 1;
        }
        while range.saturates(levels[a], levels[b]) {
            let larger = if levels[a].unsigned_abs() >= levels[b].unsigned_abs() { a } else { b };
            let other = a + b - larger;
            // The gap is kept: both lose a level, the larger one first.
            levels[larger] -= levels[larger].signum();
            if range.saturates(levels[a], levels[b]) {
                levels[other] -= levels[other].signum();
            }
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saturation::pairs_of;

    /// Levels on the safe grid, and how much coarser that is than the full one.
    fn rounded(weights: &[f32]) -> (Vec<i8>, Option<f32>) {
        let pairs = pairs_of(&[weights.len()]);
        let full = weights.iter().fold(0.0_f32, |most, w| most.max(w.abs())) / 127.0;
        let safe = safe_scale(weights, &pairs, full, 127);
        let scale = safe.unwrap_or(full);
        let mut levels: Vec<i8> = weights.iter().map(|&w| level_of(w, scale, 127)).collect();
        move_pairs(&mut levels, &pairs, LevelRange::ALL);
        (levels, safe.map(|scale| scale / full))
    }

    #[test]
    fn a_channel_without_a_pair_at_risk_keeps_its_grid() {
        let (levels, coarser) = rounded(&[1.0, -1.0, 0.0, 0.9, 0.5, 0.5]);
        assert_eq!(coarser, None);
        assert_eq!(levels, [127, -127, 0, 114, 64, 64]);
    }

    #[test]
    fn two_large_neighbours_take_the_grid_of_seven_bits() {
        let (levels, coarser) = rounded(&[1.0, 1.0, 0.25, -1.0]);
        assert!(coarser.is_some_and(|coarser| (coarser - 127.0 / 64.0).abs() < 1e-5));
        assert_eq!(levels, [64, 64, 16, -64]);
    }

    #[test]
    fn one_small_excess_among_many_weights_is_moved() {
        let mut weights = vec![40.0 / 127.0; 400];
        weights[0] = 1.0;
        weights[1] = 3.0 / 127.0;
        let (levels, coarser) = rounded(&weights);
        assert_eq!(coarser, Some(1.0));
        assert_eq!(levels[..3], [126, 2, 40]);
    }
}
