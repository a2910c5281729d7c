//! Rounding up or down by coordinate descent: the loss and the choice of AdaRound (Nagel et al.,
//! 2020), searched as by QuantEase (Behdin et al., 2023).
//!
//! The loss of a layer, eᵀ·H·e with e = w − ŵ and H = XᵀX, is quadratic, so that what one level more
//! or less of one weight changes is known exactly: Δ²·H[k, k] ∓ 2·Δ·(H·e)[k]. Every weight in turn
//! moves between the two levels around its value while that gains, all outputs side by side.
//! AdaRound itself relaxes the choice and follows gradients; with exact steps from a good start
//! there is no rate and no penalty to set.

use attar_ops::logits::weighted_rows;

/// Passes over all inputs.
const SWEEPS: usize = 4;

/// Improves `levels` [size, n] of `w`, by the moments `h` [size, size].
pub(crate) fn refine(
    w: &[f32],
    scales: &[f32],
    level_max: f32,
    h: &[f32],
    mut levels: Vec<i8>,
) -> Vec<i8> {
    let n = scales.len();
    let size = w.len() / n.max(1);
    for _ in 0..SWEEPS {
        let e: Vec<f32> =
            (0..w.len()).map(|i| w[i] - f32::from(levels[i]) * scales[i % n]).collect();
        // Anew in every sweep, against sums of rounding errors.
        let mut slopes = vec![0.0_f32; w.len()];
        weighted_rows(&mut slopes, h, &e, [size, size], false);
        let mut moves = 0;
        for k in 0..size {
            let own = h[k * size + k];
            let mut change = vec![0.0_f32; n];
            for column in 0..n {
                let at = k * n + column;
                let (slope, scale) = (slopes[at], scales[column]);
                // ŵ moves by `step`: the loss changes by step²·own − 2·step·slope.
                let step = scale.copysign(slope);
                let level = f32::from(levels[at]) + step.signum();
                let is_near = (w[at] / scale - level).abs() <= 1.0 && level.abs() <= level_max;
                if is_near && step * step * own - 2.0 * step * slope < 0.0 {
                    levels[at] = level as i8;
                    change[column] = step;
                    moves += 1;
                }
            }
            if change.iter().all(|&step| step == 0.0) {
                continue;
            }
            for (row, slopes) in slopes.chunks_exact_mut(n).enumerate() {
                let factor = h[row * size + k];
                slopes.iter_mut().zip(&change).for_each(|(slope, step)| *slope -= factor * step);
            }
        }
        if moves == 0 {
            break;
        }
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pair_of_levels_with_the_least_error_is_found() {
        // Both weights lie a little below the middle: rounded down, their errors add up.
        let h = [1.0, 0.9, 0.9, 1.0];
        let levels = refine(&[0.45, 0.45], &[1.0], 127.0, &h, vec![0, 0]);
        assert_eq!(levels.iter().map(|&level| i32::from(level)).sum::<i32>(), 1, "{levels:?}");
        let alone = refine(&[0.45, 0.45], &[1.0], 127.0, &[1.0, 0.0, 0.0, 1.0], vec![0, 0]);
        assert_eq!(alone, [0, 0]);
    }

    #[test]
    fn a_level_never_leaves_its_bound() {
        let h = [1.0, 0.99, 0.99, 1.0];
        let levels = refine(&[6.9, 0.45], &[1.0], 7.0, &h, vec![7, 0]);
        assert!(levels.iter().all(|level| level.abs() <= 7), "{levels:?}");
    }
}
