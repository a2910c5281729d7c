//! Mean squared error: L = mean (y − t)², summed over the outputs. ∂L/∂y = 2·(y − t)/count.

use attar_tensor::DType;
use serde::Deserialize;

use super::{Loss, LossRun, Measured, mismatch};
use crate::{Targets, TrainError};

pub(super) const NAME: &str = "mse";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MeanSquared {}

impl Loss for MeanSquared {
    fn measure(&self, run: &LossRun) -> Result<Measured, TrainError> {
        let wanted = match run.targets {
            Targets::Values(values) => std::slice::from_ref(values),
            Targets::Outputs(outputs) | Targets::Taught { outputs, .. } => outputs,
            other => return Err(mismatch(NAME, other.kind(), "values or a teacher's outputs")),
        };
        if wanted.len() > run.outputs.len() {
            return Err(mismatch(NAME, wanted.len(), format!("{} outputs", run.outputs.len())));
        }
        let mut gradients = Vec::new();
        let mut loss = 0.0;
        for (y, t) in run.outputs.iter().zip(wanted) {
            let is_alike = y.element_count() == t.element_count();
            if y.dtype() != DType::F32 || t.dtype() != DType::F32 || !is_alike {
                let found = format!("{} {:?}", t.dtype(), t.shape());
                return Err(mismatch(NAME, found, format!("{} {:?}", y.dtype(), y.shape())));
            }
            let count = y.element_count().max(1);
            let factor = run.scale * 2.0 / count as f32;
            let mut gradient = run.tensor(y.shape());
            let mut sum = 0.0;
            let t = t.values::<f32>();
            let dy = gradient.slice_mut::<f32>();
            for ((dy, &y), &t) in dy.iter_mut().zip(y.slice::<f32>()).zip(t.iter()) {
                let difference = y - t;
                sum += f64::from(difference) * f64::from(difference);
                *dy = factor * difference;
            }
            loss += sum / count as f64;
            gradients.push(Some(gradient));
        }
        Ok(Measured { loss, gradients })
    }
}
