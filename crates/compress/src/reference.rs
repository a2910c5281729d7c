//! What the outputs of a changed model miss of the original's, on examples of the calibration data.

use attar_graph::Model;
use attar_runtime::RunOptions;
use attar_tensor::Tensor;

use crate::{Context, PassError};

/// Examples that models are run on.
pub(crate) const EXAMPLES_MAX: usize = 64;

/// The original's float outputs, example by example.
pub(crate) struct Reference<'a> {
    context: &'a Context<'a>,
    outputs: Vec<Vec<Tensor>>,
}

impl<'a> Reference<'a> {
    /// Runs the original.
    ///
    /// # Errors
    /// No calibration data, data that does not fit, or a model that does not run.
    pub(crate) fn new(model: &Model, context: &'a Context<'a>) -> Result<Self, PassError> {
        let mut outputs = Vec::new();
        run(model, context, &mut |found| outputs.push(found))?;
        Ok(Self { context, outputs })
    }

    /// ‖ŷ − y‖² / ‖y‖², summed over outputs.
    ///
    /// # Errors
    /// A model that does not run.
    pub(crate) fn lost(&self, model: &Model) -> Result<f64, PassError> {
        let count = self.outputs.first().map_or(0, Vec::len);
        let mut sums = vec![[0.0_f64; 2]; count];
        let mut expected = self.outputs.iter();
        run(model, self.context, &mut |found| {
            let Some(expected) = expected.next() else { return };
            for (sums, (y, expected)) in sums.iter_mut().zip(found.iter().zip(expected)) {
                if y.shape() != expected.shape() {
                    continue;
                }
                let (y, expected) = (y.values::<f32>(), expected.values::<f32>());
                for (y, expected) in y.iter().zip(expected.iter()) {
                    sums[0] += f64::from(y - expected).powi(2);
                    sums[1] += f64::from(*expected).powi(2);
                }
            }
        })?;
        Ok(sums.iter().map(|[lost, power]| lost / power.max(f64::MIN_POSITIVE)).sum())
    }
}

/// Shows the f32 outputs of the first examples.
fn run(
    model: &Model,
    context: &Context,
    visit: &mut dyn FnMut(Vec<Tensor>),
) -> Result<(), PassError> {
    let calibration = context.calibration.ok_or(PassError::NoCalibration)?;
    let options = RunOptions { threads: context.threads, observed: Vec::new() };
    let mut session = context.runtime.load(model, &options)?;
    let inputs = session.inputs().to_vec();
    let mut count = 0;
    calibration.for_each_batch(&inputs, &mut |feeds| {
        if count < EXAMPLES_MAX {
            let outputs = session.run(feeds)?.into_iter();
            visit(outputs.filter(|output| output.dtype() == attar_tensor::DType::F32).collect());
        }
        count += 1;
        Ok(())
    })
}
