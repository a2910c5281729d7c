//! `SequenceMap` (opset 17 and later): a graph run once for each element of a sequence. Further
//! sequences of the same length are walked along, tensors are passed as they are; each output is a
//! sequence.

use attar_graph::Node;
use attar_tensor::Tensor;

use super::{over_data, unknown};
use crate::{Body, DataKernel, DataRun, Datum, OpError};

over_data!(SequenceMap, 17, 1..=usize::MAX, unknown, prepare);

fn prepare(node: &Node, mut bodies: Vec<Body>) -> Result<Box<dyn DataKernel>, OpError> {
    let body = bodies.pop().filter(|body| body.attribute() == "body" && bodies.is_empty());
    let body = body.ok_or_else(|| OpError::value("attribute `body`", "absent", "a graph"))?;
    let input_count = node.inputs.len();
    Ok(Box::new(move |run: &mut DataRun| {
        let length = run.sequence(0)?.len();
        for index in 1..input_count {
            if let Datum::Sequence(tensors) = run.input(index)?
                && tensors.len() != length
            {
                let what = format!("the length of input {index}");
                return Err(OpError::value(&what, tensors.len(), length.to_string()));
            }
        }
        let mut outputs: Vec<Vec<Tensor>> = vec![Vec::with_capacity(length); body.output_count()];
        for iteration in 0..length {
            let fed = (0..input_count).map(|index| {
                Ok(match run.input(index)? {
                    Datum::Sequence(tensors) => Datum::Tensor(tensors[iteration].clone()),
                    other => other.clone(),
                })
            });
            let results = body.run(fed.collect::<Result<_, OpError>>()?, run)?;
            for (output, result) in outputs.iter_mut().zip(results) {
                match result {
                    Datum::Tensor(tensor) => output.push(tensor),
                    other => {
                        return Err(OpError::value(
                            "a result of the body",
                            other.kind(),
                            "a tensor",
                        ));
                    }
                }
            }
        }
        Ok(outputs.into_iter().map(Datum::Sequence).collect())
    }))
}
