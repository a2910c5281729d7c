//! Stochastic gradient descent: b = μ·b + g, w −= η·b; with Nesterov's form w −= η·(g + μ·b).

use attar_ops::{Flow, Pool};
use attar_tensor::Tensor;
use serde::Deserialize;

use super::{Optimizer, Update};
use crate::SettingEntry;

pub(super) const SETTINGS: &[SettingEntry] = &[
    SettingEntry { key: "momentum", default: "0.0", help: "μ: how much of past steps is kept" },
    SettingEntry { key: "nesterov", default: "false", help: "look ahead by the momentum" },
    SettingEntry { key: "weight-decay", default: "0.0", help: "added to the gradient: λ·w" },
];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Sgd {
    momentum: f64,
    nesterov: bool,
    weight_decay: f64,
}

impl Optimizer for Sgd {
    fn moments(&self) -> &'static [&'static str] {
        if self.momentum == 0.0 { &[] } else { &["momentum"] }
    }

    fn update(&self, weight: &mut Tensor, moments: &mut [Tensor], update: &Update) {
        let decay = if update.decays { self.weight_decay as f32 } else { 0.0 };
        let (rate, momentum) = (update.learning_rate as f32, self.momentum as f32);
        let gradient = match update.gradient {
            Flow::Dense(tensor) => tensor.clone(),
            rows @ Flow::Rows { .. } => rows.clone().into_dense(&Pool::default()),
        };
        let pairs = weight.slice_mut::<f32>().iter_mut().zip(gradient.slice::<f32>());
        match moments.first_mut() {
            None => pairs.for_each(|(w, &g)| *w -= rate * (g * update.scale + decay * *w)),
            Some(moment) => {
                for ((w, &g), b) in pairs.zip(moment.slice_mut::<f32>()) {
                    let g = g * update.scale + decay * *w;
                    *b = momentum * *b + g;
                    *w -= rate * if self.nesterov { g + momentum * *b } else { *b };
                }
            }
        }
    }
}
