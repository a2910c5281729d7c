//! First-order importance (Molchanov et al., 2017, arXiv:1611.06440): E |w·g|, what the outputs
//! move by when a weight is removed, with g of [`gradients`](super::gradients).

use super::gradients::{Target, means};
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
    Ok(Box::new(Made(means(scoring, Target::Outputs, |w, g| (w * g).abs())?)))
}

/// With g the gradient of the loss that labels make.
pub(super) fn of_loss<'a>(scoring: &'a Scoring<'a>) -> Result<Box<dyn Scores + 'a>, PassError> {
    Ok(Box::new(Made(means(scoring, Target::Labels, |w, g| (w * g).abs())?)))
}
