//! Binary cross-entropy of logits: L = −mean(w·t·log σ(x) + (1 − t)·log(1 − σ(x))), where w weighs
//! what is positive. ∂L/∂x = (1 − t) − (1 + (w − 1)·t)·σ(−x).

use serde::Deserialize;

use super::{Loss, LossRun, Measured, mismatch};
use crate::{SettingEntry, Targets, TrainError};

pub(super) const NAME: &str = "binary-cross-entropy";

pub(super) const SETTINGS: &[SettingEntry] = &[SettingEntry {
    key: "positive-weight",
    default: "1.0",
    help: "weight of positive targets beside negative ones",
}];

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct BinaryCrossEntropy {
    positive_weight: f64,
}

impl Default for BinaryCrossEntropy {
    fn default() -> Self {
        Self { positive_weight: 1.0 }
    }
}

impl Loss for BinaryCrossEntropy {
    fn measure(&self, run: &LossRun) -> Result<Measured, TrainError> {
        let logits = run.output(NAME)?;
        let targets: Vec<f32> = match run.targets {
            Targets::Values(values) | Targets::Soft(values) => values.values::<f32>().into_owned(),
            Targets::Classes(classes) => classes.iter().map(|&class| class as f32).collect(),
            other => return Err(mismatch(NAME, other.kind(), "values from 0 to 1")),
        };
        if targets.len() != logits.element_count() {
            let expected = format!("{} of the output", logits.element_count());
            return Err(mismatch(NAME, format!("{} values", targets.len()), expected));
        }
        if let Some(wrong) = targets.iter().find(|target| !(0.0..=1.0).contains(*target)) {
            return Err(mismatch(NAME, wrong, "values from 0 to 1"));
        }
        let share = 1.0 / targets.len().max(1) as f64;
        let mut gradient = run.tensor(logits.shape());
        let mut sum = 0.0;
        let places = gradient.slice_mut::<f32>().iter_mut().zip(logits.slice::<f32>());
        for ((dx, &x), &t) in places.zip(&targets) {
            let (x, t) = (f64::from(x), f64::from(t));
            let weight = 1.0 + (self.positive_weight - 1.0) * t;
            let small = (-x.abs()).exp();
            // log(1 + e⁻ˣ) and σ(−x), neither of which overflows.
            let softplus = small.ln_1p() + (-x).max(0.0);
            let below = if x >= 0.0 { small / (1.0 + small) } else { 1.0 / (1.0 + small) };
            sum += (1.0 - t) * x + weight * softplus;
            *dx = (((1.0 - t) - weight * below) * share * f64::from(run.scale)) as f32;
        }
        Ok(Measured { loss: sum * share, gradients: vec![Some(gradient)] })
    }
}
