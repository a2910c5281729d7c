//! One pass over calibration data, a batch in memory at a time.

use std::collections::BTreeMap;

use attar_graph::Model;
use attar_runtime::RunOptions;
use attar_tensor::{DType, Tensor};

use crate::{Context, PassError};

/// What a value's batches are folded into.
pub(crate) trait Fold: Send {
    /// Takes in one batch. Returns whether all values were finite.
    fn fold(&mut self, tensor: &Tensor) -> bool;
}

/// Runs the model over the calibration data and folds every value that `records` names. Returns
/// the number of batches.
///
/// # Errors
/// No data, data that does not fit, or a value that is not finite, with its batch.
pub(crate) fn observe<F: Fold>(
    model: &Model,
    records: &mut BTreeMap<String, F>,
    context: &Context,
) -> Result<usize, PassError> {
    let calibration = context.calibration.ok_or(PassError::NoCalibration)?;
    let observed = records.keys().cloned().collect();
    let mut session =
        context.runtime.load(model, &RunOptions { threads: context.threads, observed })?;
    let inputs = session.inputs().to_vec();
    let mut batch = 0;
    calibration.for_each_batch(&inputs, &mut |feeds| {
        let mut not_finite: Option<String> = None;
        let mut fold = |name: &str, tensor: &Tensor| {
            let Some(record) = records.get_mut(name) else { return };
            if !record.fold(tensor) && not_finite.is_none() {
                not_finite = Some(name.to_string());
            }
        };
        for (name, tensor) in feeds.iter().filter(|(_, tensor)| tensor.dtype() == DType::F32) {
            fold(name, tensor);
        }
        session.observe(feeds, &mut fold)?;
        if let Some(tensor) = not_finite {
            return Err(PassError::NotFinite { tensor, batch });
        }
        batch += 1;
        Ok(())
    })?;
    if batch == 0 { Err(PassError::EmptyCalibration) } else { Ok(batch) }
}
