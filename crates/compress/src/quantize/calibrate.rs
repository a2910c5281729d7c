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

/// Runs the model over the calibration data and folds every value that `records` names, batch by
/// batch, in no fixed order. Returns the number of batches.
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
    let mut count = 0;
    calibration.for_each_group(&inputs, &mut |feeds, batches| {
        let mut not_finite: Option<(String, usize)> = None;
        let mut fold = |name: &str, tensor: &Tensor| {
            let Some(record) = records.get_mut(name) else { return };
            let mut fold = |tensor: &Tensor, batch: usize| {
                if !record.fold(tensor) && not_finite.is_none() {
                    not_finite = Some((name.to_string(), batch));
                }
            };
            match parts(tensor, batches.len()) {
                Some(parts) => parts.zip(batches).for_each(|(part, batch)| fold(&part, *batch)),
                None => fold(tensor, batches[0]),
            }
        };
        for (name, tensor) in feeds.iter().filter(|(_, tensor)| tensor.dtype() == DType::F32) {
            fold(name, tensor);
        }
        session.observe(feeds, &mut fold)?;
        if let Some((tensor, batch)) = not_finite {
            return Err(PassError::NotFinite { tensor, batch });
        }
        count += batches.len();
        Ok(())
    })?;
    if count == 0 { Err(PassError::EmptyCalibration) } else { Ok(count) }
}

/// A value of `count` batches, batch by batch along its first axis; `None` where that holds something
/// else, or one batch alone.
fn parts(tensor: &Tensor, count: usize) -> Option<impl Iterator<Item = Tensor>> {
    let (&first, rest) = tensor.shape().split_first()?;
    if count < 2 || tensor.dtype() != DType::F32 || first == 0 || first % count != 0 {
        return None;
    }
    let shape: Vec<usize> = [&[first / count], rest].concat();
    let size = tensor.element_count() / count;
    let values = tensor.values::<f32>();
    let part = move |index| Tensor::new(&shape, &values[index * size..][..size]);
    Some((0..count).map(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_several_batches_is_taken_apart_where_its_first_axis_holds_them() {
        let tensor = Tensor::new(&[4, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0_f32]);
        let found: Vec<Tensor> = parts(&tensor, 2).unwrap().collect();
        let expected = [[0.0, 1.0, 2.0, 3.0_f32], [4.0, 5.0, 6.0, 7.0]];
        assert_eq!(found, expected.map(|values| Tensor::new(&[2, 2], &values)));
        assert!(parts(&tensor, 3).is_none() && parts(&tensor, 1).is_none());
        assert!(parts(&Tensor::scalar(1.0_f32), 2).is_none());
    }
}
