//! What a teacher computes on the way, beside its outputs (`FitNets`, Romero et al. 2015,
//! arXiv:1412.6550): L = L(outputs) + w · mean over k of Σ (yₖ − tₖ)² / Σ tₖ².

use attar_tensor::DType;

use super::{Loss, LossRun, Measured, mismatch};
use crate::{Targets, TrainError};

const NAME: &str = "features";

/// Another loss, and the distance to a teacher's features where the targets hold some. Their
/// outputs stand behind those that the loss reads.
pub(super) struct Features {
    pub(super) outputs: Box<dyn Loss>,
    pub(super) weight: f64,
}

impl Loss for Features {
    fn measure(&self, run: &LossRun) -> Result<Measured, TrainError> {
        let Targets::Features { targets, features } = run.targets else {
            return self.outputs.measure(run);
        };
        let Some(first) = run.outputs.len().checked_sub(features.len()) else {
            let expected = format!("{} outputs", features.len());
            return Err(mismatch(NAME, format!("{} outputs", run.outputs.len()), expected));
        };
        let of_outputs = LossRun { outputs: &run.outputs[..first], targets, ..*run };
        let mut measured = self.outputs.measure(&of_outputs)?;
        measured.gradients.resize(first, None);
        let share = self.weight / features.len().max(1) as f64;
        for (y, t) in run.outputs[first..].iter().zip(features) {
            if y.dtype() != DType::F32 || t.dtype() != DType::F32 || y.shape() != t.shape() {
                let found = format!("{} {:?}", t.dtype(), t.shape());
                return Err(mismatch(NAME, found, format!("{} {:?}", y.dtype(), y.shape())));
            }
            let t = t.values::<f32>();
            let size = t.iter().map(|&t| f64::from(t) * f64::from(t)).sum::<f64>();
            let factor = share / size.max(f64::from(f32::MIN_POSITIVE));
            let slope = 2.0 * factor as f32 * run.scale;
            let mut gradient = run.tensor(y.shape());
            let mut sum = 0.0;
            let dy = gradient.slice_mut::<f32>();
            for ((dy, &y), &t) in dy.iter_mut().zip(y.slice::<f32>()).zip(t.iter()) {
                let difference = y - t;
                sum += f64::from(difference) * f64::from(difference);
                *dy = slope * difference;
            }
            measured.loss += factor * sum;
            measured.gradients.push(Some(gradient));
        }
        Ok(measured)
    }
}
