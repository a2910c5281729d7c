//! Models with a memory: outputs that are inputs of the next call.

use std::collections::BTreeMap;

use attar_runtime::Session;
use attar_tensor::{DType, Tensor};

use crate::EvaluateError;

/// The states of a model, from one call to the next; zeros before the first.
#[derive(Clone, Debug, Default)]
pub struct States {
    carried: Vec<Carried>,
}

#[derive(Clone, Debug)]
struct Carried {
    input: String,
    /// Index of the output that is its next value.
    output: usize,
    start: Tensor,
    value: Tensor,
}

impl States {
    /// The states that `pairs`, names of inputs and their outputs, say that a model has. Sizes that
    /// its inputs leave open are 1.
    ///
    /// # Errors
    /// A name that the model does not have.
    pub fn new(
        pairs: &BTreeMap<String, String>,
        session: &dyn Session,
    ) -> Result<Self, EvaluateError> {
        let carried = pairs.iter().map(|(input, output)| {
            let error = |name: &str, what| EvaluateError::State { name: name.into(), what };
            let found = session.inputs().iter().find(|value| value.name == *input);
            let value = found.ok_or_else(|| error(input, "input"))?;
            let at = session.outputs().iter().position(|value| value.name == *output);
            let output = at.ok_or_else(|| error(output, "output"))?;
            let shape = value.shape().ok_or_else(|| error(input, "input with a shape"))?;
            let sizes: Vec<usize> = shape
                .iter()
                .map(|dim| dim.known().and_then(|n| n.try_into().ok()).unwrap_or(1))
                .collect();
            let start = Tensor::zeros(value.dtype().unwrap_or(DType::F32), &sizes);
            Ok::<_, EvaluateError>(Carried {
                input: input.clone(),
                output,
                value: start.clone(),
                start,
            })
        });
        Ok(Self { carried: carried.collect::<Result<_, _>>()? })
    }

    pub fn is_empty(&self) -> bool {
        self.carried.is_empty()
    }

    /// Whether an input is a state.
    pub fn holds(&self, input: &str) -> bool {
        self.carried.iter().any(|state| state.input == input)
    }

    /// What the next call is fed beside the data.
    pub fn feeds(&self) -> impl Iterator<Item = (String, Tensor)> + '_ {
        self.carried.iter().map(|state| (state.input.clone(), state.value.clone()))
    }

    /// Takes the next states out of what a call gave.
    pub fn advance(&mut self, outputs: &[Tensor]) {
        for state in &mut self.carried {
            state.value = outputs[state.output].clone();
        }
    }

    /// Before the first call of another sequence.
    pub fn reset(&mut self) {
        for state in &mut self.carried {
            state.value = state.start.clone();
        }
    }
}
