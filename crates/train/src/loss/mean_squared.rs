//! Mean squared error: L = mean (y − t)².

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
            Targets::Outputs(outputs) => outputs,
            other => return Err(mismatch(NAME, other.kind(), "values or a teacher's outputs")),
        };
        if wanted.len() > run.outputs.len() {
            return Err(mismatch(NAME, wanted.len(), format!("{} outputs", run.outputs.len())));
        }
        let mut gradients = Vec::new();
        let mut loss = 0.0;
        for (y, t) in run.outputs.iter().zip(wanted) {
            if y.dtype() != DType::F32 || y.element_count() != t.element_count() {
                return Err(mismatch(NAME, format!("{:?}", t.shape()), format!("{:?}", y.shape())));
            }
            let count = y.element_count().max(1);
            let factor = run.scale * 2.0 / count as f32;
            let mut gradient = run.tensor(y.shape());
            let mut sum = 0.0;
            let t = t.values::<f32>();
            let dy = gradient.slice_mut::<f32>();
            for ((dy, &y), &t) in dy.iter_mut().zip(y.slice::<f32>()).zip(t.iter()) {
                sum += f64::from(y - t).powi(2);
                *dy = factor * (y - t);
            }
            loss += sum / count as f64;
            gradients.push(Some(gradient));
        }
        Ok(Measured { loss, gradients })
    }
}
