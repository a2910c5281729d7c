//! Optimizers: how gradients change weights, and the table of them.

mod adam;
mod sgd;

use attar_ops::optimize::Rule;
use serde::de::DeserializeOwned;

use crate::{Choice, SettingEntry, TrainError};

/// A rule of change. Its fields are its settings.
pub trait Optimizer: Send + Sync {
    /// What is kept of each weight from step to step, by name: tensors of the weight's shape that
    /// start at zero; at most two.
    fn moments(&self) -> &'static [&'static str];

    /// How the step changes weights.
    fn rule(&self, update: &Update) -> Box<dyn Rule>;
}

/// One step.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// What gradients are multiplied by first: clipping.
    pub scale: f32,
    pub learning_rate: f64,
    /// Steps, this one included.
    pub step: u64,
    /// Whether the weight decays.
    pub decays: bool,
}

impl Update {
    fn decay(&self, weight_decay: f64) -> f64 {
        if self.decays { weight_decay } else { 0.0 }
    }
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
pub const OPTIMIZERS: &[OptimizerEntry] = &[
    OptimizerEntry::of::<adam::Adam>(
        "adam",
        "steps by the mean and the mean square of past gradients; decay added to the gradient",
        adam::SETTINGS,
    ),
    OptimizerEntry::of::<adam::AdamW>(
        "adamw",
        "as adam, but weights decay apart from the gradient",
        adam::DECOUPLED_SETTINGS,
    ),
    OptimizerEntry::of::<sgd::Sgd>(
        "sgd",
        "steps by the gradient, with momentum if asked for",
        sgd::SETTINGS,
    ),
];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_optimizer_is_built_by_its_defaults() {
        for entry in OPTIMIZERS {
            let mut choice = Choice::new(entry.name);
            build_optimizer(&choice).unwrap();
            for setting in entry.settings {
                let value: serde_json::Value = serde_json::from_str(setting.default).unwrap();
                choice = choice.with(setting.key, value);
            }
            build_optimizer(&choice).unwrap();
            let unknown = build_optimizer(&choice.with("no-such", 1)).err().unwrap();
            assert!(unknown.to_string().contains("no-such"), "{unknown}");
        }
    }
}
