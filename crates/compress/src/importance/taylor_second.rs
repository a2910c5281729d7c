//! Second-order importance (`LeCun` et al., "Optimal brain damage", 1989): w²·E[g²], with
//! the diagonal of the Gauss-Newton matrix as E[g²], see [`gradients`](super::gradients).

use super::gradients::{Target, means};
use super::taylor::Made;
use super::{Scores, Scoring};
use crate::PassError;

pub(super) fn scores<'a>(scoring: &'a Scoring<'a>) -> Result<Box<dyn Scores + 'a>, PassError> {
    Ok(Box::new(Made(means(scoring, Target::Outputs, |w, g| (w * g) * (w * g))?)))
}
