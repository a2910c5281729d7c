//! Whether calibration texts are like those that are searched: ranges, and even more weights that
//! are refitted, fit the texts that they were found on.

use std::collections::BTreeMap;

use attar_evaluate::data::spread;
use attar_evaluate::{Dataset, TextEncoder};

use crate::Error;

/// Texts taken of either side.
const TEXTS_MAX: usize = 300;
/// How many times as far apart words may be as those of two halves of the searched texts.
const APART_MAX: f64 = 1.6;
/// How many times as long texts may be.
const LENGTH_RATIO_MAX: f64 = 2.0;

/// What a sample of texts is like.
struct Sample {
    /// Tokens of a text, on average.
    length: f64,
    /// Share of each token.
    shares: BTreeMap<i64, f64>,
}

impl Sample {
    fn new(encoder: &TextEncoder, texts: &[&str]) -> Result<Self, Error> {
        let mut shares: BTreeMap<i64, f64> = BTreeMap::new();
        let mut count = 0.0;
        for encoded in encoder.encode(texts)? {
            for id in encoded.ids {
                *shares.entry(id).or_default() += 1.0;
                count += 1.0;
            }
        }
        shares.values_mut().for_each(|share| *share /= f64::max(count, 1.0));
        Ok(Self { length: count / texts.len().max(1) as f64, shares })
    }

    /// Jensen-Shannon divergence of the tokens, in bits: 0 for the same, 1 for nothing in common
    /// (Lin, 1991).
    fn divergence(&self, other: &Self) -> f64 {
        let half = |own: &Self, other: &Self| -> f64 {
            let term = |(id, &p): (&i64, &f64)| {
                let q = other.shares.get(id).copied().unwrap_or(0.0);
                0.5 * p * (2.0 * p / (p + q)).log2()
            };
            own.shares.iter().map(term).sum()
        };
        half(self, other) + half(other, self)
    }
}

/// Says so where the calibration texts are of another kind than those of `data`.
///
/// # Errors
/// Texts that cannot be tokenized.
pub(crate) fn register_warning(
    calibration: &Dataset,
    calibration_count: usize,
    data: &Dataset,
    encoder: &TextEncoder,
) -> Result<Option<String>, Error> {
    let (own, searched) = (calibration.texts(), data.texts());
    let count = TEXTS_MAX.min(calibration_count).min(own.len()).min(searched.len() / 2);
    if count == 0 {
        return Ok(None);
    }
    let own: Vec<&str> = spread(own.len(), count).into_iter().map(|i| own[i]).collect();
    // Every second one to either half.
    let both: Vec<&str> =
        spread(searched.len(), 2 * count).into_iter().map(|i| searched[i]).collect();
    let half = |first: usize| both.iter().copied().skip(first).step_by(2).collect::<Vec<&str>>();
    let own = Sample::new(encoder, &own)?;
    let halves = [Sample::new(encoder, &half(0))?, Sample::new(encoder, &half(1))?];
    let among = halves[0].divergence(&halves[1]);
    let apart = 0.5 * (own.divergence(&halves[0]) + own.divergence(&halves[1]));
    let length = 0.5 * (halves[0].length + halves[1].length);
    let ratio = (own.length / length).max(length / own.length);
    let is_other = apart > APART_MAX * among || ratio > LENGTH_RATIO_MAX;
    Ok(is_other.then(|| {
        format!(
            "the calibration texts are of another kind than those of the data: {:.0} tokens on \
             average, and {length:.0} there; their words are {apart:.2} apart (Jensen-Shannon), \
             those of the data {among:.2} among themselves. What is found on them may fit worse: \
             calibrate with texts like those that are searched",
            own.length
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(tokens: &[(i64, f64)]) -> Sample {
        Sample { length: 1.0, shares: tokens.iter().copied().collect() }
    }

    #[test]
    fn divergence_is_0_for_the_same_and_1_for_nothing_in_common() {
        let (a, b) = (sample(&[(1, 0.5), (2, 0.5)]), sample(&[(3, 1.0)]));
        assert!(a.divergence(&a).abs() < 1e-12);
        assert!((a.divergence(&b) - 1.0).abs() < 1e-12);
        let between = a.divergence(&sample(&[(1, 0.5), (3, 0.5)]));
        assert!((between - 0.5).abs() < 1e-12, "{between}");
    }
}
