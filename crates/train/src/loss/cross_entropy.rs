//! Cross-entropy: L = −Σ_c q_c log p_c, p = softmax(logits), mean over the rows.

use attar_tensor::Tensor;
use serde::Deserialize;

use super::{Loss, LossRun, Measured, mismatch};
use crate::{IGNORED_CLASS, SettingEntry, Targets, TrainError};

pub(super) const NAME: &str = "cross-entropy";

pub(super) const SETTINGS: &[SettingEntry] = &[
    SettingEntry {
        key: "label-smoothing",
        default: "0.0",
        help: "share of a label that is spread evenly over all classes",
    },
    SettingEntry {
        key: "class-weights",
        default: "[]",
        help: "weight of each class in the mean; empty for equal ones",
    },
];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct CrossEntropy {
    label_smoothing: f64,
    class_weights: Vec<f32>,
}

impl Loss for CrossEntropy {
    fn measure(&self, run: &LossRun) -> Result<Measured, TrainError> {
        let logits = run.output(NAME)?;
        let classes = *logits.shape().last().ok_or_else(|| mismatch(NAME, "a scalar", "logits"))?;
        let rows = logits.element_count() / classes.max(1);
        let Targets::Classes(labels) = run.targets else {
            return Err(mismatch(NAME, run.targets.kind(), "classes"));
        };
        if labels.len() != rows {
            return Err(mismatch(NAME, labels.len(), format!("{rows} classes")));
        }
        let counted = labels.iter().filter(|&&label| label != IGNORED_CLASS).count().max(1);
        let mut gradient: Tensor = run.tensor(logits.shape());
        let mut sum = 0.0;
        let values = logits.slice::<f32>();
        for (row, &label) in labels.iter().enumerate() {
            let x = &values[row * classes..][..classes];
            let dx = &mut gradient.slice_mut::<f32>()[row * classes..][..classes];
            if label == IGNORED_CLASS {
                dx.fill(0.0);
                continue;
            }
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = x.iter().map(|&x| f64::from(x - max).exp()).sum();
            sum += total.ln() - f64::from(x[label as usize] - max);
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = (f64::from(x - max).exp() / total) as f32 * run.scale / counted as f32;
            }
            dx[label as usize] -= run.scale / counted as f32;
        }
        Ok(Measured { loss: sum / counted as f64, gradients: vec![Some(gradient)] })
    }
}
