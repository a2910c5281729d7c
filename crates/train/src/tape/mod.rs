//! A graph made ready to train: run forward, keeping what gradients read, and then backward.

mod backward;
mod finite;
mod forward;
mod plan;
mod prepare;
#[cfg(test)]
mod tests;
mod widen;

use attar_graph::{Model, Value};
use attar_ops::{DataKernel, Datum, Gradient, Kernel};
use attar_tensor::Tensor;

pub use finite::{NotFinite, When};
pub use widen::widen_half;

use crate::TrainError;

/// How to make a graph ready.
#[derive(Clone, Debug, Default)]
pub struct TapeOptions {
    /// Outputs that have part in the loss; empty for all.
    pub outputs: Vec<String>,
    /// Leaves nodes as they are written, instead of fusing groups of them.
    pub unfused: bool,
    /// Keeps the values between segments of the graph alone, and runs each segment once more on
    /// the way back: less memory, a third more time.
    pub recompute: bool,
}

/// A graph made ready to train.
pub struct Tape {
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    /// Initializers that change: trained ones first, then state.
    variables: Vec<String>,
    trained_count: usize,
    constants: Vec<Tensor>,
    steps: Vec<Step>,
    slot_count: usize,
    input_slots: Vec<usize>,
    output_sources: Vec<Source>,
    /// One that holds every step, or, to recompute, several; all but the last run twice.
    segments: Vec<Segment>,
}

/// Where a step finds an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Absent,
    Constant(usize),
    Variable(usize),
    Slot(usize),
}

/// A kernel over tensors alone, which is the rule, or over sequences, optionals and bodies, through
/// which no gradient flows.
enum StepKernel {
    Tensors(Box<dyn Kernel>),
    Data(Box<dyn DataKernel>),
}

/// One node.
struct Step {
    kernel: StepKernel,
    gradient: Option<Box<dyn Gradient>>,
    /// The node's own, then what its bodies capture.
    inputs: Vec<Source>,
    outputs: Vec<Option<usize>>,
    /// Which inputs a gradient is asked of.
    wanted: Vec<bool>,
    /// Slots that no later step reads, forward, and that nothing backward reads.
    dies_forward: Vec<usize>,
    /// Slots whose last reader, going back, is this step.
    dies_backward: Vec<usize>,
    node: String,
    op_type: String,
    /// Names of the inputs and of the outputs.
    names: [Vec<String>; 2],
}

/// Steps that keep their values together.
struct Segment {
    steps: std::ops::Range<usize>,
    /// Slots that no other segment reads: dropped after the forward run, computed again.
    internal: Vec<usize>,
    /// Slots that nothing reads once the backward run has left the segment.
    done: Vec<usize>,
}

/// Which step of training a run belongs to.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepContext {
    /// Seeds what nodes draw in this run.
    pub seed: u64,
}

/// What a forward run leaves for the backward run.
pub struct Recording {
    /// The outputs, in the order asked for.
    pub outputs: Vec<Tensor>,
    /// New contents of state, by index of the variable.
    pub updates: Vec<(usize, Tensor)>,
    slots: Vec<Option<Datum>>,
    /// Shapes of the inputs, by step.
    shapes: Vec<Vec<Vec<usize>>>,
    saved: Vec<Vec<Tensor>>,
    context: StepContext,
    watch: finite::Watch,
}

impl Tape {
    /// Makes a model ready. `trained` names the initializers that gradients are asked of.
    ///
    /// # Errors
    /// A node that the operators do not take, or, on a path from a trained weight to an output,
    /// one without gradient. Names it.
    pub fn new(
        model: &Model,
        trained: &[String],
        options: &TapeOptions,
    ) -> Result<Self, TrainError> {
        let prepared = prepare::prepare(model, trained, options)?;
        plan::plan(&prepared, options)
    }

    /// What must be fed, in model order.
    pub fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    /// The outputs that have part in the loss.
    pub fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    /// Initializers that gradients are asked of, in the order of `backward`'s results.
    pub fn trained(&self) -> &[String] {
        &self.variables[..self.trained_count]
    }

    /// The initializers that a run is handed: trained ones, then state, such as running statistics.
    pub fn variables(&self) -> &[String] {
        &self.variables
    }
}
