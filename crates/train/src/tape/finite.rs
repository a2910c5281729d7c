//! Where a value that is no number came from.

use std::fmt;

use attar_ops::{Datum, Flow, Pool};
use attar_tensor::{DType, Tensor};

use super::{Step, StepContext, Tape};
use crate::TrainError;

/// The first tensor of a step that holds a value that is no finite number.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFinite {
    pub when: When,
    pub tensor: String,
    pub value: f32,
    /// Its place in the tensor.
    pub at: usize,
}

/// When a tensor was seen.
#[derive(Clone, Debug, PartialEq)]
pub enum When {
    /// It was given: a weight or a feed.
    Given,
    /// A node made it.
    Forward { node: String, op_type: String },
    /// It is a gradient that the loss gave.
    Loss,
    /// It is a gradient that a node gave back.
    Backward { node: String, op_type: String },
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tensor, value, at, .. } = self;
        match &self.when {
            When::Given => write!(f, "`{tensor}` holds {value} at {at} before the step"),
            When::Forward { node, op_type } => {
                write!(f, "`{tensor}` (output of {op_type}, node `{node}`) is {value} at {at}")
            }
            When::Loss => write!(f, "the loss's gradient of `{tensor}` is {value} at {at}"),
            When::Backward { node, op_type } => {
                write!(
                    f,
                    "the gradient of `{tensor}` ({op_type}, node `{node}`) is {value} at {at}"
                )
            }
        }
    }
}

/// Looks at every value of a run, if it is asked to.
#[derive(Default)]
pub(super) struct Watch {
    is_on: bool,
    /// The first NaN, or gradient that is no number.
    first: Option<NotFinite>,
    /// The first +∞ of a forward run. Masks hold −∞ on purpose.
    infinite: Option<NotFinite>,
}

impl Watch {
    /// Looks at what a step made.
    pub(super) fn look(&mut self, step: &Step, outputs: &[Datum]) {
        if !self.is_on || self.first.is_some() {
            return;
        }
        let (node, op_type) = (step.node.clone(), step.op_type.clone());
        let when = When::Forward { node, op_type };
        for (name, datum) in step.names[1].iter().zip(outputs) {
            let Datum::Tensor(tensor) = datum else { continue };
            self.look_at(&when, name, tensor);
        }
    }

    /// Looks at what a step gives back to an input.
    pub(super) fn look_back(&mut self, step: &Step, position: usize, flow: &Flow) {
        if !self.is_on || self.first.is_some() {
            return;
        }
        let (Flow::Dense(tensor) | Flow::Rows { rows: tensor, .. }) = flow;
        let (node, op_type) = (step.node.clone(), step.op_type.clone());
        let found = first_of(tensor, |x| !x.is_finite());
        self.first = found.map(|(at, value)| NotFinite {
            when: When::Backward { node, op_type },
            tensor: step.names[0][position].clone(),
            value,
            at,
        });
    }

    fn look_at(&mut self, when: &When, name: &str, tensor: &Tensor) {
        let seen = |(at, value)| NotFinite { when: when.clone(), tensor: name.into(), value, at };
        if self.first.is_none() {
            self.first = first_of(tensor, f32::is_nan).map(seen);
        }
        if self.infinite.is_none() {
            self.infinite = first_of(tensor, |x| x == f32::INFINITY).map(seen);
        }
    }
}

/// The first value of an f32 tensor that is of a kind, with its place.
fn first_of(tensor: &Tensor, is: impl Fn(f32) -> bool) -> Option<(usize, f32)> {
    if tensor.dtype() != DType::F32 {
        return None;
    }
    tensor.values::<f32>().iter().copied().enumerate().find(|(_, x)| is(*x))
}

impl Tape {
    /// Runs a step once more and names the first tensor with a NaN, be it a weight, a feed, what a
    /// node makes, or, going back, a gradient that is no finite number: of the latter, the first +∞
    /// of the forward run is named as the cause. `None` where every gradient is finite.
    ///
    /// # Errors
    /// As [`forward`](Self::forward) and [`backward`](Self::backward), and what `gradients` gives.
    pub fn first_not_finite(
        &self,
        variables: &[Tensor],
        feeds: Vec<Tensor>,
        context: StepContext,
        gradients: impl FnOnce(&[Tensor]) -> Result<Vec<Option<Tensor>>, TrainError>,
        pool: &Pool,
    ) -> Result<Option<NotFinite>, TrainError> {
        let mut watch = Watch { is_on: true, ..Watch::default() };
        for (name, tensor) in self.variables.iter().zip(variables) {
            watch.look_at(&When::Given, name, tensor);
        }
        for (input, tensor) in self.inputs.iter().zip(&feeds) {
            watch.look_at(&When::Given, &input.name, tensor);
        }
        let mut recording = self.forward_watched(variables, feeds, context, pool, watch)?;
        if recording.watch.first.is_some() {
            return Ok(recording.watch.first);
        }
        let gradients = gradients(&recording.outputs)?;
        for (output, gradient) in self.outputs.iter().zip(&gradients) {
            if let Some(gradient) = gradient
                && let Some((at, value)) = first_of(gradient, |x| !x.is_finite())
                && recording.watch.first.is_none()
            {
                let tensor = output.name.clone();
                recording.watch.first = Some(NotFinite { when: When::Loss, tensor, value, at });
            }
        }
        let mut sums = vec![None; self.trained_count];
        let watch = self.backward_watched(variables, recording, gradients, &mut sums, pool)?;
        Ok(watch.first.map(|first| watch.infinite.unwrap_or(first)))
    }
}
