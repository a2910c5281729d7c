//! Optimizers: how gradients change weights, and the table of them.

mod sgd;

use attar_ops::Flow;
use attar_tensor::Tensor;
use serde::de::DeserializeOwned;

use crate::{Choice, SettingEntry, TrainError};

/// A rule of change. Its fields are its settings.
pub trait Optimizer: Send + Sync {
    /// What is kept of each weight from step to step, by name: tensors of the weight's shape that
    /// start at zero.
    fn moments(&self) -> &'static [&'static str];

    /// Changes one weight.
    fn update(&self, weight: &mut Tensor, moments: &mut [Tensor], update: &Update);
}

/// One step of one weight.
pub struct Update<'a> {
    pub gradient: &'a Flow,
    /// What the gradient is multiplied by first: clipping.
    pub scale: f32,
    pub learning_rate: f64,
    /// Steps, this one included.
    pub step: u64,
    /// Whether the weight decays.
    pub decays: bool,
}

/// An optimizer in the table.
pub struct OptimizerEntry {
    pub name: &'static str,
    pub summary: &'static str,
    pub settings: &'static [SettingEntry],
    build: fn(&Choice, &[SettingEntry]) -> Result<Box<dyn Optimizer>, TrainError>,
}

impl OptimizerEntry {
    const fn of<O: Optimizer + DeserializeOwned + 'static>(
        name: &'static str,
        summary: &'static str,
        settings: &'static [SettingEntry],
    ) -> Self {
        Self {
            name,
            summary,
            settings,
            build: |choice, entries| Ok(Box::new(choice.read::<O>(entries)?)),
        }
    }
}

/// Every optimizer.
pub const OPTIMIZERS: &[OptimizerEntry] = &[OptimizerEntry::of::<sgd::Sgd>(
    "sgd",
    "stochastic gradient descent, with momentum if asked for",
    sgd::SETTINGS,
)];

/// The optimizer chosen.
///
/// # Errors
/// A name that the table does not have, or settings that its optimizer does not take.
pub fn build_optimizer(choice: &Choice) -> Result<Box<dyn Optimizer>, TrainError> {
    let Some(entry) = OPTIMIZERS.iter().find(|entry| entry.name == choice.name) else {
        let known = OPTIMIZERS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
        return Err(TrainError::Unknown { what: "optimizer", name: choice.name.clone(), known });
    };
    (entry.build)(choice, entry.settings)
}
