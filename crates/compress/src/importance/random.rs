//! Random importance, the control beside which every other has to show what it is worth.

use attar_train::Rng;

use super::{Scores, Scoring};
use crate::PassError;

struct Random<'a>(&'a Scoring<'a>);

#[allow(clippy::unnecessary_wraps)] // as every importance
pub(super) fn scores<'a>(scoring: &'a Scoring<'a>) -> Result<Box<dyn Scores + 'a>, PassError> {
    Ok(Box::new(Random(scoring)))
}

impl Scores for Random<'_> {
    /// Drawn from (seed, name), so that a tensor's do not depend on which others there are.
    fn of(&self, index: usize) -> Vec<f32> {
        let name = self.0.names[index].bytes().map(u64::from);
        let place: Vec<u64> = std::iter::once(self.0.seed).chain(name).collect();
        let mut rng = Rng::new(&place);
        let values = self.0.tensor(index).values::<f32>();
        let draw = |&w: &f32| {
            let drawn = (rng.uniform() as f32).max(f32::MIN_POSITIVE);
            if w == 0.0 { 0.0 } else { drawn }
        };
        values.iter().map(draw).collect()
    }
}
