//! Relative importance: I(wᵢ) = |wᵢ| / Σⱼ |wⱼ| over the tensor, which sums to 1.

use super::{Scores, Scoring};
use crate::PassError;

struct Relative<'a>(&'a Scoring<'a>);

#[allow(clippy::unnecessary_wraps)] // as every importance
pub(super) fn scores<'a>(scoring: &'a Scoring<'a>) -> Result<Box<dyn Scores + 'a>, PassError> {
    Ok(Box::new(Relative(scoring)))
}

impl Scores for Relative<'_> {
    fn of(&self, index: usize) -> Vec<f32> {
        let values = self.0.tensor(index).values::<f32>();
        let sum: f64 = values.iter().map(|&w| f64::from(w.abs())).sum();
        let share = |&w: &f32| if sum > 0.0 { (f64::from(w.abs()) / sum) as f32 } else { 0.0 };
        values.iter().map(share).collect()
    }
}
