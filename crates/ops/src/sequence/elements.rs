//! Sequences made, read and changed (opset 11 and later). Positions count from the end when
//! negative.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use super::{over_data, unknown};
use crate::fact::resolve_axis;
use crate::{Body, DataKernel, DataRun, Datum, Fact, OpError};

over_data!(
    /// A sequence of tensors of one type.
    SequenceConstruct, 11, 1..=usize::MAX, unknown, construct
);

over_data!(SequenceEmpty, 11, 0..=0, unknown, |_, _| {
    Ok(Box::new(|_: &mut DataRun| Ok(vec![Datum::Sequence(Vec::new())])))
});

over_data!(SequenceAt, 11, 2..=2, unknown, |_, _| {
    Ok(Box::new(|run: &mut DataRun| {
        let tensors = run.sequence(0)?;
        let position = position(run.tensor(1)?, tensors.len())?;
        Ok(vec![Datum::Tensor(tensors[position].clone())])
    }))
});

over_data!(
    /// At the end where no position is given.
    SequenceInsert, 11, 2..=3, unknown, insert
);

over_data!(
    /// The last where no position is given.
    SequenceErase, 11, 1..=2, unknown, erase
);

over_data!(SequenceLength, 11, 1..=1, length_fact, |_, _| {
    Ok(Box::new(|run: &mut DataRun| {
        let length = run.sequence(0)?.len();
        Ok(vec![Datum::Tensor(Tensor::scalar(length as i64))])
    }))
});

#[allow(clippy::unnecessary_wraps)] // as the other inferences
fn length_fact(_: &Node, _: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::new(DType::I64, Vec::new())])
}

/// An index below `count`, as a scalar gives it.
fn position(scalar: &Tensor, count: usize) -> Result<usize, OpError> {
    let values = scalar.to_i64().filter(|values| values.len() == 1);
    let values = values.ok_or_else(|| OpError::value("the position", scalar, "one integer"))?;
    let expected = || format!("within −{count}..{count}");
    resolve_axis(values[0], count)
        .ok_or_else(|| OpError::value("the position", values[0], expected()))
}

fn check_type(dtype: Option<DType>, tensor: &Tensor) -> Result<(), OpError> {
    match dtype {
        Some(dtype) if dtype != tensor.dtype() => {
            let expected = format!("{dtype}, as of the others");
            Err(OpError::value("the type of an element", tensor.dtype(), expected))
        }
        _ => Ok(()),
    }
}

#[allow(clippy::needless_pass_by_value, clippy::unnecessary_wraps)] // as the others
fn construct(_: &Node, _: Vec<Body>) -> Result<Box<dyn DataKernel>, OpError> {
    Ok(Box::new(|run: &mut DataRun| {
        let tensors = (0..run.inputs.len()).map(|index| run.tensor(index).cloned());
        let tensors: Vec<Tensor> = tensors.collect::<Result<_, _>>()?;
        let dtype = tensors.first().map(Tensor::dtype);
        tensors.iter().try_for_each(|tensor| check_type(dtype, tensor))?;
        Ok(vec![Datum::Sequence(tensors)])
    }))
}

#[allow(clippy::needless_pass_by_value, clippy::unnecessary_wraps)]
fn insert(_: &Node, _: Vec<Body>) -> Result<Box<dyn DataKernel>, OpError> {
    Ok(Box::new(|run: &mut DataRun| {
        let mut tensors = run.sequence(0)?.to_vec();
        let tensor = run.tensor(1)?.clone();
        check_type(tensors.first().map(Tensor::dtype), &tensor)?;
        let position = match run.optional(2) {
            None => tensors.len(),
            Some(_) => insertion(run.tensor(2)?, tensors.len())?,
        };
        tensors.insert(position, tensor);
        Ok(vec![Datum::Sequence(tensors)])
    }))
}

/// Where to insert: from −count to count, which is the end.
fn insertion(scalar: &Tensor, count: usize) -> Result<usize, OpError> {
    if scalar.to_i64().as_deref() == Some(&[count as i64]) {
        return Ok(count);
    }
    position(scalar, count)
}

#[allow(clippy::needless_pass_by_value, clippy::unnecessary_wraps)]
fn erase(_: &Node, _: Vec<Body>) -> Result<Box<dyn DataKernel>, OpError> {
    Ok(Box::new(|run: &mut DataRun| {
        let mut tensors = run.sequence(0)?.to_vec();
        let position = match run.optional(1) {
            None => position(&Tensor::scalar(-1_i64), tensors.len())?,
            Some(_) => position(run.tensor(1)?, tensors.len())?,
        };
        tensors.remove(position);
        Ok(vec![Datum::Sequence(tensors)])
    }))
}
