//! Distillation (Hinton et al., 2015): L = (1 − λ)·CE(labels) + λ·T²·KL(teacher ‖ student).

use serde::Deserialize;

use super::cross_entropy::CrossEntropy;
use super::divergence::Divergence;
use super::{Loss, LossRun, Measured, mismatch};
use crate::{SettingEntry, Targets, TrainError};

pub(super) const NAME: &str = "distillation";

pub(super) const SETTINGS: &[SettingEntry] = &[
    SettingEntry { key: "teacher-weight", default: "0.5", help: "λ: the teacher's share" },
    SettingEntry {
        key: "temperature",
        default: "2.0",
        help: "T: what logits are divided by for the teacher's share",
    },
    SettingEntry {
        key: "label-smoothing",
        default: "0.0",
        help: "share of a label that is spread evenly over all classes",
    },
];

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Distillation {
    teacher_weight: f64,
    temperature: f64,
    label_smoothing: f64,
}

impl Default for Distillation {
    fn default() -> Self {
        Self { teacher_weight: 0.5, temperature: 2.0, label_smoothing: 0.0 }
    }
}

impl Loss for Distillation {
    fn measure(&self, run: &LossRun) -> Result<Measured, TrainError> {
        let Targets::Taught { labels, .. } = run.targets else {
            return Err(mismatch(NAME, run.targets.kind(), "labels with a teacher's outputs"));
        };
        let share = |of: f64| (of * f64::from(run.scale)) as f32;
        let (outputs, pool, teacher) = (run.outputs, run.pool, self.teacher_weight);
        let of_labels = LossRun { outputs, targets: labels, scale: share(1.0 - teacher), pool };
        let entropy =
            CrossEntropy { label_smoothing: self.label_smoothing, class_weights: Vec::new() };
        let entropy = entropy.measure(&of_labels)?;
        let of_teacher = LossRun { outputs, targets: run.targets, scale: share(teacher), pool };
        let divergence = Divergence { temperature: self.temperature }.measure(&of_teacher)?;
        let mut gradients = entropy.gradients;
        for (sum, more) in gradients.iter_mut().zip(divergence.gradients) {
            if let (Some(sum), Some(more)) = (sum, more) {
                attar_ops::add_assign(sum.slice_mut::<f32>(), more.slice::<f32>());
                pool.recycle(more);
            }
        }
        let loss = (1.0 - teacher) * entropy.loss + teacher * divergence.loss;
        Ok(Measured { loss, gradients })
    }
}
