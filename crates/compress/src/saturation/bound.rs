//! Rounding a channel of weights so that no pair of neighbours can saturate 16 bits.

use super::LevelRange;

/// Grids tried: the largest weight is given this level, and with 64 no pair is ever at risk.
const LEVELS: [i8; 8] = [120, 112, 104, 96, 88, 80, 72, 64];

/// A channel's rounding.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bounded {
    /// The level of the largest weight.
    pub(crate) level_max: i8,
    /// Whether a pair was at risk on the full grid.
    pub(crate) was_at_risk: bool,
}

/// The grid of least squared error for a channel, pairs at risk being moved to where they are safe.
///
/// A coarser grid costs every weight a little, a moved pair costs two weights much; where the
/// largest weight has a large neighbour the first is better, and it is at most one bit.
pub(crate) fn safe_levels(
    weights: &[f32],
    pairs: &[(usize, usize)],
    range: LevelRange,
    level_max: i8,
) -> Bounded {
    let largest = weights.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
    let at = |level: i8| {
        let scale = largest / f32::from(level);
        let mut levels: Vec<i8> = weights.iter().map(|w| level_of(*w, scale, level)).collect();
        let moved = move_pairs(&mut levels, pairs, range);
        let errors = weights.iter().zip(&levels).map(|(w, &q)| {
            let error = w / scale - f32::from(q);
            error * error
        });
        (errors.sum::<f32>() * scale * scale, moved)
    };
    if largest < f32::MIN_POSITIVE * 127.0 {
        return Bounded { level_max, was_at_risk: false };
    }
    let (mut least, moved) = at(level_max);
    let mut bounded = Bounded { level_max, was_at_risk: moved > 0 };
    if moved > 0 {
        for &level in LEVELS.iter().filter(|&&level| level < level_max) {
            let (error, _) = at(level);
            if error < least {
                least = error;
                bounded.level_max = level;
            }
        }
    }
    bounded
}

fn level_of(weight: f32, scale: f32, level_max: i8) -> i8 {
    let most = f32::from(level_max);
    (weight / scale).round_ties_even().clamp(-most, most) as i8
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

    fn rounded(weights: &[f32]) -> (Vec<i8>, Bounded) {
        let pairs = pairs_of(&[weights.len()]);
        let bounded = safe_levels(weights, &pairs, LevelRange::ALL, 127);
        let largest = weights.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
        let scale = largest / f32::from(bounded.level_max);
        let mut levels: Vec<i8> =
            weights.iter().map(|&w| level_of(w, scale, bounded.level_max)).collect();
        move_pairs(&mut levels, &pairs, LevelRange::ALL);
        (levels, bounded)
    }

    #[test]
    fn a_channel_without_a_pair_at_risk_keeps_its_grid() {
        let (levels, bounded) = rounded(&[1.0, -1.0, 0.0, 0.9, 0.5, 0.5]);
        assert_eq!(bounded, Bounded { level_max: 127, was_at_risk: false });
        assert_eq!(levels, [127, -127, 0, 114, 64, 64]);
    }

    #[test]
    fn two_large_neighbours_take_the_grid_of_seven_bits() {
        let (levels, bounded) = rounded(&[1.0, 1.0, 0.25, -1.0]);
        assert_eq!(bounded, Bounded { level_max: 64, was_at_risk: true });
        assert_eq!(levels, [64, 64, 16, -64]);
    }

    #[test]
    fn one_small_excess_among_many_weights_is_moved() {
        let mut weights = vec![40.0 / 127.0; 400];
        weights[0] = 1.0;
        weights[1] = 3.0 / 127.0;
        let (levels, bounded) = rounded(&weights);
        assert_eq!(bounded, Bounded { level_max: 127, was_at_risk: true });
        assert_eq!(levels[..3], [126, 2, 40]);
    }
}
