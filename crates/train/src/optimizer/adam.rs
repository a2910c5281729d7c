//! Adam and `AdamW`: see [`attar_ops::optimize::Adam`] for the equations.

use attar_ops::optimize::{self, Rule};
use serde::Deserialize;

use super::{Optimizer, Update};
use crate::SettingEntry;

const BETAS: SettingEntry = SettingEntry {
    key: "betas",
    default: "[0.9, 0.999]",
    help: "how much of the mean and of the mean square is kept in a step",
};

const EPSILON: SettingEntry =
    SettingEntry { key: "epsilon", default: "1e-8", help: "added to the root of the mean square" };

pub(super) const SETTINGS: &[SettingEntry] = &[
    BETAS,
    EPSILON,
    SettingEntry { key: "weight-decay", default: "0.0", help: "share of a weight in its gradient" },
];

pub(super) const DECOUPLED_SETTINGS: &[SettingEntry] = &[
    BETAS,
    EPSILON,
    SettingEntry {
        key: "weight-decay",
        default: "0.01",
        help: "share of a weight lost in a step, times the learning rate",
    },
];

const MOMENTS: &[&str] = &["mean", "mean-square"];

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Adam {
    betas: [f64; 2],
    epsilon: f64,
    weight_decay: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.0 }
    }
}

impl Adam {
    fn update(&self, update: &Update, is_coupled: bool) -> Box<dyn Rule> {
        Box::new(optimize::Adam {
            learning_rate: update.learning_rate,
            betas: self.betas,
            epsilon: self.epsilon,
            weight_decay: update.decay(self.weight_decay),
            is_coupled,
            scale: update.scale,
            step: update.step,
        })
    }
}

impl Optimizer for Adam {
    fn moments(&self) -> &'static [&'static str] {
        MOMENTS
    }

    fn rule(&self, update: &Update) -> Box<dyn Rule> {
        self.update(update, true)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct AdamW {
    betas: [f64; 2],
    epsilon: f64,
    weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.01 }
    }
}

impl Optimizer for AdamW {
    fn moments(&self) -> &'static [&'static str] {
        MOMENTS
    }

    fn rule(&self, update: &Update) -> Box<dyn Rule> {
        let Self { betas, epsilon, weight_decay } = *self;
        Adam { betas, epsilon, weight_decay }.update(update, false)
    }
}
