//! Absolute importance: |w| (Han et al., 2015, arXiv:1506.02626) and w², whose sum over a channel
//! is its squared norm.

use super::{Scores, Scoring};
use crate::PassError;

struct Absolute<'a> {
    scoring: &'a Scoring<'a>,
    score: fn(f32) -> f32,
}

#[allow(clippy::unnecessary_wraps)] // as every importance
pub(super) fn l1<'a>(scoring: &'a Scoring<'a>) -> Result<Box<dyn Scores + 'a>, PassError> {
    Ok(Box::new(Absolute { scoring, score: f32::abs }))
}

#[allow(clippy::unnecessary_wraps)] // as every importance
pub(super) fn l2<'a>(scoring: &'a Scoring<'a>) -> Result<Box<dyn Scores + 'a>, PassError> {
    Ok(Box::new(Absolute { scoring, score: |w| (w * w).min(f32::MAX) }))
}

impl Scores for Absolute<'_> {
    fn of(&self, index: usize) -> Vec<f32> {
        let values = self.scoring.tensor(index).values::<f32>();
        values.iter().map(|&w| (self.score)(w)).collect()
    }
}
