//! Errors measured: the outputs of products in the quantized model beside the original's.

use std::collections::BTreeMap;

use attar_graph::{Model, Plan, apply};
use attar_runtime::{RunOptions, Session};
use attar_tensor::{DType, Tensor};

use crate::{Context, PassError};

/// Examples that both models are run on.
const EXAMPLES: usize = 16;

/// ‖ŷ − y‖ / ‖y‖ of every named value, over examples spread over the calibration data of
/// `batch_count` batches. Errors of all that comes before a value are part of its own.
///
/// # Errors
/// A model that does not run, or data that cannot be read.
pub(crate) fn output_errors(
    original: &Model,
    plan: &Plan,
    values: &[String],
    batch_count: usize,
    context: &Context,
) -> Result<BTreeMap<String, f64>, PassError> {
    let Some(calibration) = context.calibration else { return Ok(BTreeMap::new()) };
    let mut quantized = original.clone();
    apply(&mut quantized.graph, plan)?;
    let options = RunOptions { threads: context.threads, observed: values.to_vec() };
    // What the first needs only while it loads is gone before the second comes.
    let mut after = context.runtime.load(&quantized, &options)?;
    drop(quantized);
    let mut before = context.runtime.load(original, &options)?;
    let inputs = before.inputs().to_vec();
    let step = batch_count.div_ceil(EXAMPLES).max(1);
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    let mut batch = 0;
    calibration.for_each_batch(&inputs, &mut |feeds| {
        batch += 1;
        if (batch - 1) % step != 0 {
            return Ok(());
        }
        let wanted = shown(before.as_mut(), feeds)?;
        let found = shown(after.as_mut(), feeds)?;
        for (name, y) in wanted {
            let Some(other) = found.get(&name).filter(|other| other.len() == y.len()) else {
                continue;
            };
            let (lost, power) = sums.entry(name).or_default();
            for (a, b) in y.iter().zip(other) {
                *lost += f64::from(a - b).powi(2);
                *power += f64::from(*a).powi(2);
            }
        }
        Ok(())
    })?;
    let relative =
        |(lost, power): (f64, f64)| if power > 0.0 { (lost / power).sqrt() } else { 0.0 };
    Ok(sums.into_iter().map(|(name, sums)| (name, relative(sums))).collect())
}

fn shown(
    session: &mut dyn Session,
    feeds: &[(&str, &Tensor)],
) -> Result<BTreeMap<String, Vec<f32>>, PassError> {
    let mut values = BTreeMap::new();
    session.observe(feeds, &mut |name, tensor| {
        if tensor.dtype() == DType::F32 {
            values.insert(name.to_string(), tensor.values::<f32>().into_owned());
        }
    })?;
    Ok(values)
}
