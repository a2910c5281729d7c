//! Kullback–Leibler divergence from a teacher (Hinton et al., 2015):
//! L = T²·Σ p[c]·log(p[c]/q[c]), p and q the softmax of the teacher's and of the student's logits
//! over T, mean over the rows. ∂L/∂x = T·(q − p).

use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use super::cross_entropy::Rows;
use super::{Loss, LossRun, Measured, mismatch};
use crate::{SettingEntry, Targets, TrainError};

pub(super) const NAME: &str = "kl";

pub(super) const SETTINGS: &[SettingEntry] = &[SettingEntry {
    key: "temperature",
    default: "1.0",
    help: "T: what logits are divided by; higher shows more of what the teacher holds possible",
}];

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Divergence {
    pub(super) temperature: f64,
}

impl Default for Divergence {
    fn default() -> Self {
        Self { temperature: 1.0 }
    }
}

impl Loss for Divergence {
    fn measure(&self, run: &LossRun) -> Result<Measured, TrainError> {
        let logits = run.output(NAME)?;
        let classes = logits.shape().last().copied().unwrap_or(0);
        let teacher = match run.targets {
            Targets::Outputs(outputs) | Targets::Taught { outputs, .. } if !outputs.is_empty() => {
                outputs[0].aligned()
            }
            Targets::Soft(targets) => logarithms(targets),
            other => return Err(mismatch(NAME, other.kind(), "a teacher's outputs")),
        };
        let is_alike = teacher.dtype() == DType::F32
            && teacher.element_count() == logits.element_count()
            && classes > 0;
        if !is_alike {
            let expected = format!("{:?}, as the model's output", logits.shape());
            return Err(mismatch(NAME, format!("{:?} of the teacher", teacher.shape()), expected));
        }
        let heat = 1.0 / self.temperature;
        let mut student = Rows::of(run, logits, classes, heat as f32);
        let teacher = Rows::of(run, &teacher, classes, heat as f32);
        let share = 1.0 / student.logs.len().max(1) as f64;
        let factor = (self.temperature * share) as f32 * run.scale;
        let mut sum = 0.0;
        let gradients = student.softmax.slice_mut::<f32>();
        let logarithm = |rows: &[f32], at: usize, log: f64| f64::from(rows[at]) * heat - log;
        for (at, (dx, &p)) in gradients.iter_mut().zip(teacher.softmax.slice::<f32>()).enumerate() {
            let row = at / classes;
            if p > 0.0 {
                let log_p = logarithm(teacher.logits, at, teacher.logs[row]);
                let log_q = logarithm(student.logits, at, student.logs[row]);
                sum += f64::from(p) * (log_p - log_q);
            }
            *dx = factor * (*dx - p);
        }
        run.pool.recycle(teacher.softmax);
        let loss = self.temperature * self.temperature * sum * share;
        Ok(Measured { loss, gradients: vec![Some(student.softmax)] })
    }
}

/// Probabilities as logits.
fn logarithms(probabilities: &Tensor) -> Tensor {
    let logs: Vec<f32> = probabilities.values::<f32>().iter().map(|p| p.ln()).collect();
    Tensor::new(probabilities.shape(), &logs)
}
