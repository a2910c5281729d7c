//! Cross-entropy: L = −Σ q[c] log p[c], p = softmax(logits), as `PyTorch` has it.
//!
//! For a class y, q[c] = w[y]·(1 − s)·[c = y] + w[c]·s/C, and the mean is over Σ w[y]; for
//! probabilities t, q[c] = w[c]·((1 − s)·t[c] + s/C), and the mean is over the rows.
//! ∂L/∂x = (Σ q[c])·p − q.

use attar_ops::logits::softmax_with_logs;
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
    pub(super) label_smoothing: f64,
    pub(super) class_weights: Vec<f64>,
}

impl Loss for CrossEntropy {
    fn measure(&self, run: &LossRun) -> Result<Measured, TrainError> {
        let logits = run.output(NAME)?;
        let rows = Rows::new(run, logits)?;
        if !self.class_weights.is_empty() && self.class_weights.len() != rows.classes {
            let found = format!("{} class weights", self.class_weights.len());
            return Err(mismatch(NAME, found, format!("{} of the output", rows.classes)));
        }
        match run.targets {
            Targets::Classes(labels) => self.of_classes(rows, labels, run.scale),
            Targets::Soft(targets) => self.of_probabilities(rows, targets, run.scale),
            other => Err(mismatch(NAME, other.kind(), "classes or probabilities of classes")),
        }
    }
}

/// Logits with their softmax and the logarithms of its sums.
pub(super) struct Rows<'a> {
    pub(super) logits: &'a [f32],
    pub(super) softmax: Tensor,
    pub(super) logs: Vec<f64>,
    pub(super) classes: usize,
}

impl<'a> Rows<'a> {
    fn new(run: &LossRun, logits: &'a Tensor) -> Result<Self, TrainError> {
        let classes = logits.shape().last().copied().unwrap_or(0);
        if classes == 0 {
            return Err(mismatch(NAME, format!("{:?}", logits.shape()), "[rows, classes]"));
        }
        Ok(Self::of(run, logits, classes, 1.0))
    }

    /// Of logits · factor.
    pub(super) fn of(run: &LossRun, logits: &'a Tensor, classes: usize, factor: f32) -> Self {
        let mut softmax = run.tensor(logits.shape());
        let values = softmax.slice_mut::<f32>();
        values.copy_from_slice(logits.slice::<f32>());
        if factor != 1.0 {
            values.iter_mut().for_each(|x| *x *= factor);
        }
        let mut logs = vec![0.0; values.len() / classes];
        softmax_with_logs(values, classes, &mut logs);
        Self { logits: logits.slice::<f32>(), softmax, logs, classes }
    }
}

impl CrossEntropy {
    fn weight(&self, class: usize) -> f64 {
        self.class_weights.get(class).copied().unwrap_or(1.0)
    }

    fn of_classes(
        &self,
        mut rows: Rows,
        labels: &[u32],
        scale: f32,
    ) -> Result<Measured, TrainError> {
        let classes = rows.classes;
        if labels.len() != rows.logs.len() {
            return Err(mismatch(NAME, labels.len(), format!("{} classes", rows.logs.len())));
        }
        let counted = labels.iter().filter(|&&label| label != IGNORED_CLASS);
        if let Some(&wrong) = counted.clone().find(|&&label| label as usize >= classes) {
            return Err(mismatch(NAME, format!("class {wrong}"), format!("0 to {}", classes - 1)));
        }
        let total: f64 = counted.map(|&label| self.weight(label as usize)).sum();
        let share = if total > 0.0 { 1.0 / total } else { 0.0 };
        let spread = self.label_smoothing / classes as f64;
        let weight_sum: f64 = (0..classes).map(|class| self.weight(class)).sum();
        let mut sum = 0.0;
        let gradients = rows.softmax.slice_mut::<f32>();
        for (row, &label) in labels.iter().enumerate() {
            let dx = &mut gradients[row * classes..][..classes];
            if label == IGNORED_CLASS {
                dx.fill(0.0);
                continue;
            }
            let x = &rows.logits[row * classes..][..classes];
            let surprise = |x: f32| rows.logs[row] - f64::from(x);
            let own = self.weight(label as usize) * (1.0 - self.label_smoothing);
            sum += own * surprise(x[label as usize]);
            let factor = (own + spread * weight_sum) * share * f64::from(scale);
            dx.iter_mut().for_each(|p| *p *= factor as f32);
            if spread > 0.0 {
                for (class, (dx, &x)) in dx.iter_mut().zip(x).enumerate() {
                    let q = spread * self.weight(class);
                    sum += q * surprise(x);
                    *dx -= (q * share * f64::from(scale)) as f32;
                }
            }
            dx[label as usize] -= (own * share * f64::from(scale)) as f32;
        }
        Ok(Measured { loss: sum * share, gradients: vec![Some(rows.softmax)] })
    }

    fn of_probabilities(
        &self,
        mut rows: Rows,
        targets: &Tensor,
        scale: f32,
    ) -> Result<Measured, TrainError> {
        let classes = rows.classes;
        if targets.element_count() != rows.logits.len() {
            let expected = format!("[{}, {classes}]", rows.logs.len());
            return Err(mismatch(NAME, format!("{:?}", targets.shape()), expected));
        }
        let share = 1.0 / rows.logs.len().max(1) as f64;
        let spread = self.label_smoothing / classes as f64;
        let targets = targets.values::<f32>();
        let mut sum = 0.0;
        let gradients = rows.softmax.slice_mut::<f32>();
        for (row, dx) in gradients.chunks_exact_mut(classes).enumerate() {
            let x = &rows.logits[row * classes..][..classes];
            let t = &targets[row * classes..][..classes];
            let q = |class: usize| {
                let smooth = (1.0 - self.label_smoothing) * f64::from(t[class]) + spread;
                self.weight(class) * smooth
            };
            let mass: f64 = (0..classes).map(q).sum();
            for (class, (dx, &x)) in dx.iter_mut().zip(x).enumerate() {
                let q = q(class);
                if q != 0.0 {
                    sum += q * (rows.logs[row] - f64::from(x));
                }
                *dx = ((mass * f64::from(*dx) - q) * share * f64::from(scale)) as f32;
            }
        }
        Ok(Measured { loss: sum * share, gradients: vec![Some(rows.softmax)] })
    }
}
