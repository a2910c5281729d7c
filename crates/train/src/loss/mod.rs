//! Losses: what training makes small, and the table of them.

mod binary_cross_entropy;
mod contrastive;
mod cosine;
mod cross_entropy;
mod distillation;
mod divergence;
mod features;
mod margin;
mod mean_squared;
mod pairs;
#[cfg(test)]
mod tests;

use attar_ops::Pool;
use attar_tensor::{DType, Tensor};
use serde::de::DeserializeOwned;

use crate::{Choice, SettingEntry, Targets, TrainError};

/// A function of outputs and targets. Its fields are its settings.
pub trait Loss: Send + Sync {
    /// The loss of a batch, and what flows back.
    ///
    /// # Errors
    /// [`TrainError::Targets`] for outputs or targets that the loss does not take.
    fn measure(&self, run: &LossRun) -> Result<Measured, TrainError>;
}

/// One batch, for a loss.
pub struct LossRun<'a> {
    /// Outputs of the model, in the order of [`TrainerOptions::outputs`].
    ///
    /// [`TrainerOptions::outputs`]: crate::TrainerOptions::outputs
    pub outputs: &'a [Tensor],
    pub targets: &'a Targets,
    /// What the gradients are multiplied by: a batch's share of its step.
    pub scale: f32,
    pub pool: &'a Pool,
}

/// What a loss found.
#[derive(Debug)]
pub struct Measured {
    /// Mean over the batch.
    pub loss: f64,
    /// By output: scale · ∂loss/∂output. `None` where an output has no part.
    pub gradients: Vec<Option<Tensor>>,
}

impl LossRun<'_> {
    /// The first output, which must be f32.
    pub(crate) fn output(&self, loss: &'static str) -> Result<&Tensor, TrainError> {
        match self.outputs.first() {
            Some(output) if output.dtype() == DType::F32 => Ok(output),
            Some(output) => Err(mismatch(loss, output.dtype(), "an output of f32")),
            None => Err(mismatch(loss, "no output", "one")),
        }
    }

    pub(crate) fn tensor(&self, shape: &[usize]) -> Tensor {
        self.pool.tensor(DType::F32, shape)
    }
}

/// What a loss does not take.
pub(crate) fn mismatch(
    loss: &'static str,
    found: impl std::fmt::Display,
    expected: impl std::fmt::Display,
) -> TrainError {
    TrainError::Targets { loss, found: found.to_string(), expected: expected.to_string() }
}

/// A loss in the table.
pub struct LossEntry {
    pub name: &'static str,
    pub summary: &'static str,
    pub settings: &'static [SettingEntry],
    build: fn(&Choice, &[SettingEntry]) -> Result<Box<dyn Loss>, TrainError>,
}

impl LossEntry {
    const fn of<L: Loss + DeserializeOwned + 'static>(
        name: &'static str,
        summary: &'static str,
        settings: &'static [SettingEntry],
    ) -> Self {
        Self {
            name,
            summary,
            settings,
            build: |choice, entries| Ok(Box::new(choice.read::<L>(entries)?)),
        }
    }
}

/// Every loss.
pub const LOSSES: &[LossEntry] = &[
    LossEntry::of::<binary_cross_entropy::BinaryCrossEntropy>(
        binary_cross_entropy::NAME,
        "−log of the probability of each yes or no, by its own logit",
        binary_cross_entropy::SETTINGS,
    ),
    LossEntry::of::<contrastive::Contrastive>(
        contrastive::NAME,
        "each query nearest to its own document among those of the batch",
        contrastive::SETTINGS,
    ),
    LossEntry::of::<cosine::CosineDistance>(
        cosine::NAME,
        "the angle to a teacher's embeddings, or that of pairs to their scores",
        &[],
    ),
    LossEntry::of::<cross_entropy::CrossEntropy>(
        cross_entropy::NAME,
        "−log of the probability of the right class, of hard or soft labels",
        cross_entropy::SETTINGS,
    ),
    LossEntry::of::<distillation::Distillation>(
        distillation::NAME,
        "cross-entropy of labels mixed with the divergence from a teacher",
        distillation::SETTINGS,
    ),
    LossEntry::of::<divergence::Divergence>(
        divergence::NAME,
        "Kullback-Leibler divergence from a teacher's classes",
        divergence::SETTINGS,
    ),
    LossEntry::of::<margin::Margin>(
        margin::NAME,
        "right above wrong by a margin: scores, a teacher's differences, or triplets",
        margin::SETTINGS,
    ),
    LossEntry::of::<mean_squared::MeanSquared>(
        mean_squared::NAME,
        "mean squared distance to values or to a teacher's outputs",
        &[],
    ),
];

/// The loss chosen.
///
/// # Errors
/// A name that the table does not have, or settings that its loss does not take.
pub fn build_loss(choice: &Choice) -> Result<Box<dyn Loss>, TrainError> {
    let Some(entry) = LOSSES.iter().find(|entry| entry.name == choice.name) else {
        let known = LOSSES.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
        return Err(TrainError::Unknown { what: "loss", name: choice.name.clone(), known });
    };
    (entry.build)(choice, entry.settings)
}

/// A loss to which the distance to a teacher's features is added, times `weight`, wherever targets
/// hold features ([`Targets::Features`]).
pub fn with_features(loss: Box<dyn Loss>, weight: f64) -> Box<dyn Loss> {
    Box::new(features::Features { outputs: loss, weight })
}
