//! Stochastic gradient descent: see [`attar_ops::optimize::Sgd`] for the equations.

use attar_ops::optimize::{self, Rule};
use serde::Deserialize;

use super::{Optimizer, Update};
use crate::SettingEntry;

pub(super) const SETTINGS: &[SettingEntry] = &[
    SettingEntry { key: "momentum", default: "0.0", help: "how much of past steps is kept" },
    SettingEntry { key: "dampening", default: "0.0", help: "share of a gradient momentum omits" },
    SettingEntry { key: "nesterov", default: "false", help: "look ahead by the momentum" },
    SettingEntry { key: "weight-decay", default: "0.0", help: "share of a weight in its gradient" },
];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Sgd {
    momentum: f64,
    dampening: f64,
    nesterov: bool,
    weight_decay: f64,
}

impl Optimizer for Sgd {
    fn moments(&self) -> &'static [&'static str] {
        if self.momentum == 0.0 { &[] } else { &["momentum"] }
    }

    fn rule(&self, update: &Update) -> Box<dyn Rule> {
        Box::new(optimize::Sgd {
            learning_rate: update.learning_rate,
            momentum: self.momentum,
            dampening: self.dampening,
            is_nesterov: self.nesterov,
            weight_decay: update.decay(self.weight_decay),
            scale: update.scale,
            step: update.step,
        })
    }
}
