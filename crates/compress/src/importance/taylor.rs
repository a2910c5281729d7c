//! First-order importance (Molchanov et al., 2017, arXiv:1611.06440): E |w·g|, what the outputs
//! move by when a weight is removed, with g of [`gradients`](super::gradients).

use super::gradients::means;
use super::{Scores, Scoring};
use crate::PassError;

/// Scores that have been made.
pub(super) struct Made(pub(super) Vec<Vec<f32>>);

impl Scores for Made {
    fn of(&self, index: usize) -> Vec<f32> {
        self.0[index].clone()
    }
}

pub(super) fn scores<'a>(scoring: &'a Scoring<'a>) -> Result<Box<dyn Scores + 'a>, PassError> {
    Ok(Box::new(Made(means(scoring, |w, g| (w * g).abs())?)))
}
