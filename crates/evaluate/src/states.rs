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

#[cfg(test)]
mod tests {
    use attar_graph::Model;
    use attar_graph::testing::graph_from_text;
    use attar_runtime::{Builtin, RunOptions, Runtime};

    use super::*;
    use crate::data::Tensors;
    use crate::{Silent, run_sequences};

    /// Sums what it hears: y = x + h, which is h of the next call.
    fn summing() -> Box<dyn Session> {
        let mut graph = graph_from_text(
            "x: f32[n, 2]\nh: f32[1, n, 2]\ns = Squeeze(h, zero)\n\
                                         y = Add(x, s)\nnext = Unsqueeze(y, zero)",
        );
        graph.set_initializer("zero", Tensor::new(&[1], &[0_i64]));
        graph.inputs.retain(|input| input.name != "zero");
        let y = graph.outputs[0].clone();
        graph.outputs.insert(0, attar_graph::Value { name: "y".into(), value_type: None, ..y });
        let opsets = [(String::new(), 17)].into_iter().collect();
        let model = Model { ir_version: 8, opsets, graph, ..Model::default() };
        Builtin.load(&model, &RunOptions::default()).unwrap()
    }

    fn pairs(input: &str, output: &str) -> BTreeMap<String, String> {
        [(input.to_string(), output.to_string())].into_iter().collect()
    }

    #[test]
    fn a_state_goes_on_within_a_sequence_and_starts_again_with_the_next() {
        let mut session = summing();
        let states = States::new(&pairs("h", "next"), session.as_ref()).unwrap();
        let x = Tensor::new(&[5, 2], &[1.0_f32, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0, 5.0, 50.0]);
        let run = |sequences: Option<Vec<i64>>, session: &mut dyn Session| {
            let mut data = Tensors::default();
            (data.count, data.sequences) = (5, sequences);
            data.arrays = vec![("x".to_string(), x.clone())];
            run_sequences(session, Some("y"), &data, states.clone(), &Silent).unwrap().values
        };
        let one = run(None, session.as_mut());
        assert_eq!(one, [1.0, 10.0, 3.0, 30.0, 6.0, 60.0, 10.0, 100.0, 15.0, 150.0]);
        let two = run(Some(vec![7, 7, 7, 2, 2]), session.as_mut());
        assert_eq!(two, [1.0, 10.0, 3.0, 30.0, 6.0, 60.0, 4.0, 40.0, 9.0, 90.0]);
    }

    #[test]
    fn a_name_that_the_model_lacks_is_an_error() {
        let session = summing();
        let error = |input: &str, output: &str| {
            States::new(&pairs(input, output), session.as_ref()).unwrap_err().to_string()
        };
        assert_eq!(
            error("g", "next"),
            "attar.toml names `g` as a state, and the model has no such input"
        );
        assert!(error("h", "after").contains("`after`") && error("h", "after").contains("output"));
    }
}
