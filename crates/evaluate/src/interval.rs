//! 95 % confidence intervals by the bootstrap (Efron & Tibshirani, 1993): the same examples are
//! drawn again and again with replacement, and the middle 95 % of the results kept.

use serde::Serialize;

/// An estimate and the range that holds the true value 95 times in 100.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// Resamples drawn; the ends of the interval then move by about 1 % of its width.
const RESAMPLES: usize = 10_000;
const SEED: u64 = 0x5eed_a77a;

/// `SplitMix64` (Steele, Lea & Flood, 2014).
struct Generator(u64);

impl Generator {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An index below `count`.
    fn index(&mut self, count: usize) -> usize {
        ((u128::from(self.next()) * count as u128) >> 64) as usize
    }
}

/// The interval of a statistic of `count` examples, given the indices drawn.
pub fn resampled_interval(
    count: usize,
    resamples: usize,
    statistic: impl Fn(&[usize]) -> f64,
) -> Interval {
    let all: Vec<usize> = (0..count).collect();
    let value = statistic(&all);
    if count == 0 {
        return Interval { value, low: value, high: value };
    }
    let mut generator = Generator(SEED);
    let mut drawn = vec![0; count];
    let mut results: Vec<f64> = (0..resamples)
        .map(|_| {
            drawn.iter_mut().for_each(|index| *index = generator.index(count));
            statistic(&drawn)
        })
        .collect();
    results.sort_by(f64::total_cmp);
    let at = |part: f64| results[((resamples - 1) as f64 * part).round() as usize];
    Interval { value, low: at(0.025), high: at(0.975) }
}

/// The mean of per-example values.
pub fn mean_interval(values: &[f64]) -> Interval {
    let mean = |drawn: &[usize]| {
        drawn.iter().map(|&index| values[index]).sum::<f64>() / drawn.len().max(1) as f64
    };
    resampled_interval(values.len(), RESAMPLES, mean)
}

/// The mean difference `after − before` of values of the same examples.
///
/// # Panics
/// When the counts differ.
pub fn paired_interval(before: &[f64], after: &[f64]) -> Interval {
    assert_eq!(before.len(), after.len(), "paired values come from the same examples");
    let differences: Vec<f64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
    mean_interval(&differences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_an_interval_of_no_width() {
        let interval = paired_interval(&[0.3; 50], &[0.5; 50]);
        assert!((interval.low - 0.2).abs() < 1e-12 && (interval.high - 0.2).abs() < 1e-12);
    }

    #[test]
    fn the_interval_of_a_mean_is_about_two_standard_errors_each_way() {
        // 400 coin flips, half heads: standard error 0.025.
        let flips: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let interval = mean_interval(&flips);
        assert_eq!(interval.value, 0.5);
        assert!((interval.low - 0.451).abs() < 0.006, "{interval:?}");
        assert!((interval.high - 0.549).abs() < 0.006, "{interval:?}");
    }
}
