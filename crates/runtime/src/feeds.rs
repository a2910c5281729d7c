//! Checks what is fed against what a model takes.

use attar_graph::{Dim, Value};
use attar_tensor::Tensor;

use crate::RuntimeError;

/// Names, types, ranks and known sizes of all feeds.
pub(crate) fn check_feeds(inputs: &[Value], feeds: &[(&str, &Tensor)]) -> Result<(), RuntimeError> {
    for (name, _) in feeds {
        if !inputs.iter().any(|input| input.name == *name) {
            let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            let (name, inputs) = ((*name).to_string(), names.join(", "));
            return Err(RuntimeError::UnknownFeed { name, inputs });
        }
    }
    for input in inputs {
        let feed = feeds.iter().find(|(name, _)| *name == input.name);
        let Some((_, tensor)) = feed else {
            return Err(RuntimeError::MissingFeed { name: input.name.clone() });
        };
        if !takes(input, tensor) {
            return Err(RuntimeError::FeedType {
                name: input.name.clone(),
                found: format!("{}{:?}", tensor.dtype(), tensor.shape()),
                expected: describe(input),
            });
        }
    }
    Ok(())
}

fn takes(input: &Value, tensor: &Tensor) -> bool {
    let same_type = input.dtype().is_none_or(|dtype| dtype == tensor.dtype());
    let same_shape = input.shape().is_none_or(|shape| {
        shape.len() == tensor.rank()
            && shape.iter().zip(tensor.shape()).all(|(dim, &size)| match dim {
                Dim::Known(known) => *known == size as i64,
                _ => true,
            })
    });
    same_type && same_shape
}

fn describe(input: &Value) -> String {
    let dtype = input.dtype().map_or("any type".into(), |dtype| dtype.to_string());
    match input.shape() {
        Some(shape) => {
            let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
            format!("{dtype}[{}]", dims.join(", "))
        }
        None => dtype,
    }
}
