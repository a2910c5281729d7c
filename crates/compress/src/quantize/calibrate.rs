//! Ranges of values over calibration data, folded batch by batch.

use std::collections::{BTreeMap, HashMap};

use attar_graph::Model;
use attar_runtime::RunOptions;
use attar_tensor::{DType, Tensor};

use super::nodes::ActivationRange;
use crate::{Context, PassError};

/// Least and greatest value seen.
#[derive(Clone, Copy, Debug)]
struct MinMax {
    low: f32,
    high: f32,
}

impl MinMax {
    fn fold(&mut self, tensor: &Tensor) -> bool {
        let mut is_finite = true;
        for &value in tensor.values::<f32>().iter() {
            is_finite &= value.is_finite();
            self.low = self.low.min(value);
            self.high = self.high.max(value);
        }
        is_finite
    }
}

/// Runs the model over the calibration data and gives every named value its range.
///
/// # Errors
/// No data, data that does not fit, or a value that is not finite.
pub(crate) fn ranges(
    model: &Model,
    values: Vec<String>,
    context: &Context,
) -> Result<BTreeMap<String, ActivationRange>, PassError> {
    let calibration = context.calibration.ok_or(PassError::NoCalibration)?;
    let mut seen: HashMap<String, MinMax> = HashMap::new();
    let mut session = {
        let options = RunOptions { threads: context.threads, observed: values.clone() };
        context.runtime.load(model, &options)?
    };
    let inputs = session.inputs().to_vec();
    let mut batch = 0;
    calibration.for_each_batch(&inputs, &mut |feeds| {
        let mut not_finite: Option<String> = None;
        let mut fold = |name: &str, tensor: &Tensor| {
            let open = MinMax { low: f32::INFINITY, high: f32::NEG_INFINITY };
            let range = seen.entry(name.to_string()).or_insert(open);
            if !range.fold(tensor) && not_finite.is_none() {
                not_finite = Some(name.to_string());
            }
        };
        for (name, tensor) in feeds.iter().filter(|(_, tensor)| tensor.dtype() == DType::F32) {
            if values.iter().any(|value| value == name) {
                fold(name, tensor);
            }
        }
        session.observe(feeds, &mut fold)?;
        if let Some(tensor) = not_finite {
            return Err(PassError::NotFinite { tensor, batch });
        }
        batch += 1;
        Ok(())
    })?;
    if batch == 0 {
        return Err(PassError::EmptyCalibration);
    }
    let range = |name: String| {
        let seen = seen.get(&name)?;
        Some((name, ActivationRange::new(seen.low, seen.high)))
    };
    Ok(values.into_iter().filter_map(range).collect())
}
