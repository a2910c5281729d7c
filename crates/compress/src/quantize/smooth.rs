//! Scales of channels moved from an activation into the weights that read it (Xiao et al.,
//! "SmoothQuant", 2022): x·W = (x / s)·(s·W), s = max|x|^α / max|w|^(1 − α), with α chosen for each
//! activation by the error that it predicts.

use serde::Deserialize;

use super::statistics::Statistics;

/// Values of α tried. At 0 only the weights are levelled, at 1 only the activations.
const ALPHAS: [f32; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// Predicted squared error, of that without divisors, from which a second look at the data is due.
const GAINS: f64 = 0.8;
/// How far a channel may be scaled against the others, which keeps both sides far from the ends
/// of f32.
const FACTOR_MAX: f32 = 1e4;

/// The setting: which activations are smoothed. Each costs a multiplication while running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Smooth {
    /// Those whose error falls to less than two fifths.
    Auto,
    /// Those whose error falls by a tenth.
    #[default]
    All,
    Off,
}

impl Smooth {
    /// Part of the error that may remain for a multiplication to be worth its time.
    pub(crate) fn remains_max(self) -> f64 {
        match self {
            Self::Auto => 0.4,
            Self::All => 0.9,
            Self::Off => 0.0,
        }
    }
}

/// What one reader's weights are made of, [inputs, outputs].
pub(crate) struct Reader<'a> {
    pub(crate) w: &'a [f32],
    pub(crate) outputs: usize,
}

/// Weights of a convolution without groups, of `shape` [outputs, inputs, window…]: those of an input
/// channel in a row, and their count.
pub(crate) fn by_input(w: &[f32], shape: &[usize]) -> (usize, Vec<f32>) {
    let (outputs, inputs) = (shape[0], shape[1]);
    let window: usize = shape[2..].iter().product();
    let kernel = |input: usize, output: usize| &w[(output * inputs + input) * window..][..window];
    let rows = (0..inputs).flat_map(|input| (0..outputs).flat_map(move |o| kernel(input, o)));
    (outputs * window, rows.copied().collect())
}

/// The divisor of each channel with which the least error is predicted, or `None` where none gains.
pub(crate) fn divisors(seen: &Statistics, readers: &[Reader], level_max: f32) -> Option<Vec<f32>> {
    divisors_within(seen, readers, level_max, &|divisors| divisors, GAINS)
}

/// As [`divisors`], of those that `fit` makes fit, where no more than `remains_max` of the squared
/// error is left.
pub(crate) fn divisors_within(
    seen: &Statistics,
    readers: &[Reader],
    level_max: f32,
    fit: &dyn Fn(Vec<f32>) -> Vec<f32>,
    remains_max: f64,
) -> Option<Vec<f32>> {
    let channels = seen.low.len();
    let fits = |reader: &Reader| reader.w.len() == channels * reader.outputs;
    if channels < 2 || readers.is_empty() || !readers.iter().all(fits) {
        return None;
    }
    let site = Site::new(seen, readers);
    let plain = site.error(&vec![1.0; channels], readers, level_max);
    let tried = ALPHAS.iter().map(|&alpha| {
        let divisors = fit(site.divisors(alpha));
        (site.error(&divisors, readers, level_max), divisors)
    });
    let (least, divisors) = tried.min_by(|a, b| a.0.total_cmp(&b.0))?;
    (least < remains_max * plain).then_some(divisors)
}

struct Site {
    low: Vec<f32>,
    high: Vec<f32>,
    /// Mean square of each channel.
    power: Vec<f64>,
    weight_max: Vec<f32>,
    weight_squares: Vec<f64>,
}

impl Site {
    fn new(seen: &Statistics, readers: &[Reader]) -> Self {
        let channels = seen.low.len();
        let mut site = Self {
            low: seen.low.clone(),
            high: seen.high.clone(),
            power: seen.square_sum.iter().map(|sum| sum / seen.count.max(1) as f64).collect(),
            weight_max: vec![0.0; channels],
            weight_squares: vec![0.0; channels],
        };
        for reader in readers {
            for (channel, row) in reader.w.chunks_exact(reader.outputs).enumerate() {
                for &w in row {
                    site.weight_max[channel] = site.weight_max[channel].max(w.abs());
                    site.weight_squares[channel] += f64::from(w) * f64::from(w);
                }
            }
        }
        site
    }

    /// s for one α, around 1: a channel that is never used, or whose weights are 0, keeps 1.
    fn divisors(&self, alpha: f32) -> Vec<f32> {
        let logarithm = |channel: usize| {
            let x = self.low[channel].abs().max(self.high[channel].abs());
            let w = self.weight_max[channel];
            (x > f32::MIN_POSITIVE && w > f32::MIN_POSITIVE)
                .then(|| alpha * x.ln() - (1.0 - alpha) * w.ln())
        };
        let logarithms: Vec<Option<f32>> = (0..self.low.len()).map(logarithm).collect();
        let used: Vec<f32> = logarithms.iter().flatten().copied().collect();
        let mean = used.iter().sum::<f32>() / used.len().max(1) as f32;
        let factor = |logarithm: &Option<f32>| {
            logarithm.map_or(1.0, |l| (l - mean).exp().clamp(1.0 / FACTOR_MAX, FACTOR_MAX))
        };
        logarithms.iter().map(factor).collect()
    }

    /// The mean squared error of all outputs: that of rounded activations, a step of Δ leaving
    /// Δ²/12 of each value, and that of rounded weights likewise.
    fn error(&self, divisors: &[f32], readers: &[Reader], level_max: f32) -> f64 {
        let channels = self.low.iter().zip(&self.high).zip(divisors);
        let (mut low, mut high) = (0.0_f32, 0.0_f32);
        for ((l, h), s) in channels {
            (low, high) = (low.min(l / s), high.max(h / s));
        }
        let step = f64::from(high / 255.0 - low / 255.0);
        let weighted = self.weight_squares.iter().zip(divisors);
        let of_input: f64 = weighted.map(|(w, &s)| w * f64::from(s).powi(2)).sum();
        let powers = self.power.iter().zip(divisors);
        let power: f64 = powers.map(|(power, &s)| power / f64::from(s).powi(2)).sum();
        let mut of_weights = 0.0;
        for reader in readers {
            let mut largest = vec![0.0_f32; reader.outputs];
            for (row, s) in reader.w.chunks_exact(reader.outputs).zip(divisors) {
                for (largest, w) in largest.iter_mut().zip(row) {
                    *largest = largest.max((w * s).abs());
                }
            }
            let steps = largest.iter().map(|&largest| f64::from(largest / level_max).powi(2));
            of_weights += steps.sum::<f64>() * power;
        }
        (step * step * of_input + of_weights) / 12.0
    }
}

#[cfg(test)]
mod tests {
    use attar_tensor::Tensor;

    use super::*;
    use crate::quantize::statistics::ChannelAxis;

    fn seen(rows: &[[f32; 3]]) -> Statistics {
        let mut seen = Statistics::new(ChannelAxis::Last, Vec::new());
        let values: Vec<f32> = rows.iter().flatten().copied().collect();
        assert!(seen.fold(&Tensor::new(&[rows.len(), 3], &values)));
        seen
    }

    #[test]
    fn a_channel_of_outliers_is_divided_and_level_channels_are_left_alone() {
        let w = [1.0, -1.0, 0.5, 0.5, 1.0, 1.0];
        let readers = [Reader { w: &w, outputs: 2 }];
        let level = seen(&[[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]]);
        assert_eq!(divisors(&level, &readers, 127.0), None);
        let outlier = seen(&[[1.0, -1.0, 100.0], [-1.0, 1.0, -100.0]]);
        let s = divisors(&outlier, &readers, 127.0).unwrap();
        assert!(s[2] > 3.0 * s[0] && s[2] > 3.0 * s[1], "{s:?}");
    }

    #[test]
    fn channels_of_zeros_and_weights_of_zeros_have_finite_divisors() {
        let w = [1.0, 1.0, 0.0];
        let readers = [Reader { w: &w, outputs: 1 }];
        let dead = seen(&[[0.0, 1000.0, 1.0], [0.0, 1.0, 2.0]]);
        let site = Site::new(&dead, &readers);
        for alpha in ALPHAS {
            assert!(site.divisors(alpha).iter().all(|s| s.is_finite() && *s > 0.0), "{alpha}");
        }
    }
}
