//! A graph made ready to run: fused, constants packed, the lifetime of every value planned.

mod planner;

use std::time::{Duration, Instant};

use attar_graph::{GraphError, Model, Value};
use attar_tensor::{DType, Tensor};

use crate::opset::{NEWEST_OPSET, OpsetError, prepared};
use crate::{DataKernel, DataRun, Datum, Kernel, OpError, Pool, Run, fuse};

/// Where a kernel finds an input.
#[derive(Clone, Copy)]
enum Source {
    Absent,
    Constant(usize),
    /// A slot, and whether the value dies with this reading.
    Slot(usize, bool),
}

/// A kernel over tensors alone, which is the rule, or over more.
enum StepKernel {
    Tensors(Box<dyn Kernel>),
    Data(Box<dyn DataKernel>),
}

/// One node, ready to run.
struct Step {
    kernel: StepKernel,
    /// Whether f16 and bf16 are computed in f32.
    widens_half: bool,
    inputs: Vec<Source>,
    /// Slots of the outputs; `None` where nothing reads one.
    outputs: Vec<Option<usize>>,
    /// Outputs to show, by index, with the names to show them under.
    observed: Vec<(usize, String)>,
    node: String,
    op_type: String,
}

/// What one step of a run took.
#[derive(Clone, Debug)]
pub struct StepTime {
    /// The node that the step stands for; a fused one stands for several.
    pub node: String,
    pub op_type: String,
    pub time: Duration,
}

/// Shows an observed value by name.
pub type Visit<'a> = &'a mut (dyn FnMut(&str, &Tensor) + Send);

/// A graph made ready to run.
pub struct Program {
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    steps: Vec<Step>,
    constants: Vec<Tensor>,
    /// Slot of each required input.
    input_slots: Vec<usize>,
    output_sources: Vec<Source>,
    slot_count: usize,
}

/// Why a graph cannot be made ready, or does not run.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ProgramError {
    #[error("{op_type} (node `{node}`) {source}")]
    Node { node: String, op_type: String, source: Box<OpError> },

    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl From<OpsetError> for ProgramError {
    fn from(error: OpsetError) -> Self {
        match error {
            OpsetError::Node { node, op_type, source } => {
                Self::Node { node, op_type, source: Box::new(source) }
            }
            OpsetError::Graph(error) => Self::Graph(error),
            OpsetError::Range { .. } => unreachable!("nothing was asked to be of another opset"),
        }
    }
}

impl From<ProgramError> for OpError {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::Node { node, op_type, source } => Self::Inner { node, op_type, source },
            ProgramError::Graph(error) => Self::Attribute(error),
        }
    }
}

impl Program {
    /// Fuses and plans a model. The values named in `observed` are kept by fusion, and shown by
    /// [`observe`](Self::observe).
    ///
    /// # Errors
    /// When a node's operator is unknown or does not take the node.
    pub fn new(mut model: Model, observed: &[String]) -> Result<Self, ProgramError> {
        let output_count = model.graph.outputs.len();
        // What is to be observed counts as an output, so that fusion leaves it in place.
        for name in observed {
            if !model.graph.is_output(name) {
                // Of whatever type and shape, which are not to be taken for known.
                let value = Value::tensor(name, DType::F32, Vec::new());
                model.graph.outputs.push(Value { value_type: None, ..value });
            }
        }
        if let Some(prepared) = prepared(&model)? {
            model = prepared;
        }
        // All nodes now mean what they mean in the newest operator set, and fusion may use it.
        let newest = model.opset().max(NEWEST_OPSET);
        model.opsets.insert(String::new(), newest);
        fuse::fuse_for_runtime(&mut model)?;
        model.graph.outputs.truncate(output_count);
        planner::plan(&model, observed)
    }

    /// What must be fed, in model order.
    pub fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    pub fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    /// Runs the graph on one datum per input.
    ///
    /// # Errors
    /// [`ProgramError::Node`] for the node that fails.
    ///
    /// # Panics
    /// When the count of feeds is not that of the inputs.
    pub fn run(&self, feeds: Vec<Datum>, pool: &Pool) -> Result<Vec<Datum>, ProgramError> {
        self.observe(feeds, pool, None)
    }

    /// Runs the graph and shows the observed values as they are computed.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn observe(
        &self,
        feeds: Vec<Datum>,
        pool: &Pool,
        visit: Option<Visit>,
    ) -> Result<Vec<Datum>, ProgramError> {
        self.execute(feeds, pool, visit, None)
    }

    /// Runs the graph and tells what each step took.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn profile(&self, feeds: Vec<Datum>, pool: &Pool) -> Result<Vec<StepTime>, ProgramError> {
        let mut times = Vec::with_capacity(self.steps.len());
        self.execute(feeds, pool, None, Some(&mut times))?;
        let of_step = |(step, time): (&Step, Duration)| StepTime {
            node: step.node.clone(),
            op_type: step.op_type.clone(),
            time,
        };
        Ok(self.steps.iter().zip(times).map(of_step).collect())
    }

    fn execute(
        &self,
        feeds: Vec<Datum>,
        pool: &Pool,
        mut visit: Option<Visit>,
        mut times: Option<&mut Vec<Duration>>,
    ) -> Result<Vec<Datum>, ProgramError> {
        assert_eq!(feeds.len(), self.input_slots.len(), "one feed per input");
        let mut slots: Vec<Option<Datum>> = vec![None; self.slot_count];
        let mut inputs = Vec::new();
        for (feed, &slot) in feeds.into_iter().zip(&self.input_slots) {
            slots[slot] = Some(feed);
        }
        for step in &self.steps {
            let start = times.is_some().then(Instant::now);
            let outputs = self.run_step(step, &mut slots, &mut inputs, pool).map_err(|source| {
                let (node, op_type) = (step.node.clone(), step.op_type.clone());
                ProgramError::Node { node, op_type, source: Box::new(source) }
            })?;
            if let (Some(times), Some(start)) = (&mut times, start) {
                times.push(start.elapsed());
            }
            match outputs {
                Outputs::Tensors(tensors) => {
                    let data = tensors.into_iter().map(Datum::Tensor);
                    step.keep(data, &mut slots, pool, &mut visit);
                }
                Outputs::Data(data) => step.keep(data.into_iter(), &mut slots, pool, &mut visit),
            }
        }
        let take = |source: &Source| match *source {
            Source::Constant(index) => Datum::Tensor(self.constants[index].clone()),
            Source::Slot(slot, _) => slots[slot].clone().expect("an output was computed or fed"),
            Source::Absent => unreachable!("outputs have names"),
        };
        let outputs = self.output_sources.iter().map(take).collect();
        slots.into_iter().flatten().for_each(|datum| pool.recycle_datum(datum));
        Ok(outputs)
    }

    /// Runs a step; `tensors` is room for its inputs.
    fn run_step(
        &self,
        step: &Step,
        slots: &mut [Option<Datum>],
        tensors: &mut Vec<Option<Tensor>>,
        pool: &Pool,
    ) -> Result<Outputs, OpError> {
        let inputs = step.inputs.iter().map(|source| match *source {
            Source::Absent => None,
            Source::Constant(index) => Some(Datum::Tensor(self.constants[index].clone())),
            Source::Slot(slot, true) => slots[slot].take(),
            Source::Slot(slot, false) => slots[slot].clone(),
        });
        let outputs = match &step.kernel {
            StepKernel::Data(kernel) => {
                let mut run = DataRun { inputs: inputs.collect(), pool };
                let outputs = kernel.run(&mut run)?;
                run.inputs.into_iter().flatten().for_each(|datum| pool.recycle_datum(datum));
                Outputs::Data(outputs)
            }
            StepKernel::Tensors(kernel) => {
                let mut run = Run { inputs: std::mem::take(tensors), pool };
                run.inputs.clear();
                for (index, datum) in inputs.enumerate() {
                    run.inputs.push(match datum {
                        Some(Datum::Tensor(tensor)) => Some(tensor),
                        None => None,
                        Some(other) => Some(other.into_tensor(index)?),
                    });
                }
                let narrow = if step.widens_half { widen(&mut run) } else { None };
                let mut outputs = kernel.run(&mut run)?;
                *tensors = run.inputs;
                tensors.drain(..).flatten().for_each(|tensor| pool.recycle(tensor));
                if let Some(dtype) = narrow {
                    narrow_to(dtype, &mut outputs, pool);
                }
                Outputs::Tensors(outputs)
            }
        };
        if step.outputs.iter().skip(outputs.len()).any(Option::is_some) {
            let (found, allowed) = (step.outputs.len(), format!("at most {}", outputs.len()));
            return Err(OpError::value("the count of outputs", found, allowed));
        }
        Ok(outputs)
    }
}

/// What a step gives.
enum Outputs {
    Tensors(Vec<Tensor>),
    Data(Vec<Datum>),
}

impl Outputs {
    fn len(&self) -> usize {
        match self {
            Self::Tensors(tensors) => tensors.len(),
            Self::Data(data) => data.len(),
        }
    }
}

impl Step {
    /// Shows the outputs that are observed, and puts into their slots those that are read.
    fn keep(
        &self,
        outputs: impl Iterator<Item = Datum>,
        slots: &mut [Option<Datum>],
        pool: &Pool,
        visit: &mut Option<Visit>,
    ) {
        for (position, datum) in outputs.enumerate() {
            if let (Some(visit), Datum::Tensor(tensor)) = (visit.as_mut(), &datum) {
                let own = self.observed.iter().filter(|(of, _)| *of == position);
                own.for_each(|(_, name)| visit(name, tensor));
            }
            match self.outputs.get(position) {
                Some(Some(slot)) => slots[*slot] = Some(datum),
                _ => pool.recycle_datum(datum),
            }
        }
    }
}

/// Makes f16 and bf16 inputs f32, and tells the type of the first.
fn widen(run: &mut Run) -> Option<DType> {
    let mut narrow = None;
    for input in run.inputs.iter_mut().flatten() {
        if matches!(input.dtype(), DType::F16 | DType::BF16) {
            narrow = narrow.or(Some(input.dtype()));
            *input = input.converted(DType::F32).expect("floats convert to f32");
        }
    }
    narrow
}

/// Rounds f32 outputs to `dtype`.
fn narrow_to(dtype: DType, outputs: &mut [Tensor], pool: &Pool) {
    for output in outputs.iter_mut().filter(|output| output.dtype() == DType::F32) {
        let narrow = output.converted(dtype).expect("f32 converts to any float");
        pool.recycle(std::mem::replace(output, narrow));
    }
}
