//! Optional, `OptionalGetElement` and `OptionalHasElement` (opset 15; tensors and sequences count as
//! optionals that hold themselves from 18).

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use super::over_data;
use crate::{Body, DataKernel, DataRun, Datum, Fact, OpError};

over_data!(Optional, 15, 0..=1, content, |_, _| {
    Ok(Box::new(|run: &mut DataRun| Ok(vec![run.optional(0).cloned().unwrap_or(Datum::Empty)])))
});

over_data!(OptionalGetElement, 15, 1..=1, content, get);

over_data!(OptionalHasElement, 15, 0..=1, has_fact, |_, _| {
    Ok(Box::new(|run: &mut DataRun| {
        let has = run.optional(0).is_some_and(|datum| *datum != Datum::Empty);
        Ok(vec![Datum::Tensor(Tensor::from_bools(&[], &[has]))])
    }))
});

/// What is known of the content.
#[allow(clippy::unnecessary_wraps)] // as the other inferences
fn content(_: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    Ok(inputs.first().copied().flatten().cloned().into_iter().collect())
}

#[allow(clippy::unnecessary_wraps)]
fn has_fact(_: &Node, _: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::new(DType::Bool, Vec::new())])
}

#[allow(clippy::needless_pass_by_value, clippy::unnecessary_wraps)]
fn get(_: &Node, _: Vec<Body>) -> Result<Box<dyn DataKernel>, OpError> {
    Ok(Box::new(|run: &mut DataRun| match run.input(0)? {
        Datum::Empty => Err(OpError::value("input 0", "an empty optional", "one that holds")),
        datum => Ok(vec![datum.clone()]),
    }))
}
