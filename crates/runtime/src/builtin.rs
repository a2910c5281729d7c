//! attar's own runtime: fuses, plans lifetimes and packs weights once, then runs in reused buffers.

use std::collections::HashMap;

use attar_graph::{Graph, Model, Node, Value};
use attar_ops::{Kernel, Operator, Pool, Run, check, fuse};
use attar_tensor::Tensor;

use crate::feeds::check_feeds;
use crate::{RunOptions, Runtime, RuntimeError, Session};

/// The runtime of `attar-ops`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Builtin;

impl Runtime for Builtin {
    fn name(&self) -> &'static str {
        "builtin"
    }

    fn version(&self) -> String {
        format!("{} ({})", env!("CARGO_PKG_VERSION"), attar_ops::isa_name())
    }

    fn load(&self, model: &Model, options: &RunOptions) -> Result<Box<dyn Session>, RuntimeError> {
        Ok(Box::new(BuiltinSession::new(model, options)?))
    }
}

/// Where a kernel finds an input.
#[derive(Clone, Copy)]
enum Source {
    Absent,
    Constant(usize),
    /// A slot, and whether the value dies with this reading.
    Slot(usize, bool),
}

/// One node, ready to run.
struct Step {
    kernel: Box<dyn Kernel>,
    inputs: Vec<Source>,
    /// Slots of the outputs; `None` where nothing reads one.
    outputs: Vec<Option<usize>>,
    /// Outputs to show, by index, with the names to show them under.
    observed: Vec<(usize, String)>,
    node: String,
    op_type: String,
}

struct BuiltinSession {
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    steps: Vec<Step>,
    constants: Vec<Tensor>,
    /// Slot of each required input.
    input_slots: Vec<usize>,
    output_sources: Vec<Source>,
    slots: Vec<Option<Tensor>>,
    pool: Pool,
    threads: rayon::ThreadPool,
}

impl BuiltinSession {
    fn new(model: &Model, options: &RunOptions) -> Result<Self, RuntimeError> {
        let mut fused = model.clone();
        // What is to be observed counts as an output, so that fusion leaves it in place.
        for name in options.observed.iter().filter(|name| !model.graph.is_output(name)) {
            fused.graph.outputs.push(Value::tensor(name, attar_tensor::DType::F32, Vec::new()));
        }
        fuse::fuse_for_runtime(&mut fused)?;
        fused.graph.outputs.truncate(model.graph.outputs.len());
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.get())
            .thread_name(|index| format!("attar-{index}"))
            .build()
            .map_err(|error| RuntimeError::Unsupported { what: error.to_string() })?;
        Planner::new(&fused, options).plan(threads)
    }
}

/// Turns a graph into steps over numbered slots.
struct Planner<'a> {
    model: &'a Model,
    observed: &'a [String],
    slot_of: HashMap<&'a str, usize>,
    constant_of: HashMap<&'a str, &'a Tensor>,
    used_constants: HashMap<&'a str, usize>,
    constants: Vec<Tensor>,
    /// Index of the last node that reads each value.
    last_use: HashMap<&'a str, usize>,
}

impl<'a> Planner<'a> {
    fn new(model: &'a Model, options: &'a RunOptions) -> Self {
        let graph = &model.graph;
        let mut last_use = HashMap::new();
        for (index, node) in graph.nodes.iter().enumerate() {
            last_use.extend(node.inputs.iter().map(|name| (name.as_str(), index)));
        }
        // What the model returns outlives every node.
        last_use.extend(graph.outputs.iter().map(|output| (output.name.as_str(), usize::MAX)));
        Self {
            model,
            observed: &options.observed,
            slot_of: HashMap::new(),
            constant_of: graph.constants().collect(),
            used_constants: HashMap::new(),
            constants: Vec::new(),
            last_use,
        }
    }

    fn plan(mut self, threads: rayon::ThreadPool) -> Result<BuiltinSession, RuntimeError> {
        let graph: &'a Graph = &self.model.graph;
        let input_slots: Vec<usize> =
            graph.required_inputs().map(|input| self.slot(&input.name)).collect();
        let mut steps = Vec::with_capacity(graph.nodes.len());
        for (index, node) in graph.nodes.iter().enumerate() {
            // Constants were looked up above; their nodes have nothing left to do.
            if node.constant().is_none() {
                steps.push(self.step(index, node)?);
            }
        }
        let output_sources =
            graph.outputs.iter().map(|output| self.source(&output.name, usize::MAX)).collect();
        Ok(BuiltinSession {
            inputs: graph.required_inputs().cloned().collect(),
            outputs: graph.outputs.clone(),
            steps,
            input_slots,
            output_sources,
            slots: vec![None; self.slot_of.len()],
            constants: self.constants,
            pool: Pool::default(),
            threads,
        })
    }

    fn slot(&mut self, name: &'a str) -> usize {
        let next = self.slot_of.len();
        *self.slot_of.entry(name).or_insert(next)
    }

    fn source(&mut self, name: &'a str, node: usize) -> Source {
        if name.is_empty() {
            return Source::Absent;
        }
        if let Some(tensor) = self.constant_of.get(name) {
            let next = self.constants.len();
            let index = *self.used_constants.entry(name).or_insert(next);
            if index == next {
                self.constants.push(tensor.aligned());
            }
            return Source::Constant(index);
        }
        Source::Slot(self.slot_of[name], self.last_use.get(name) == Some(&node))
    }

    fn step(&mut self, index: usize, node: &'a Node) -> Result<Step, RuntimeError> {
        let fail = |source| RuntimeError::Node {
            node: node.label().into(),
            op_type: node.op_type.clone(),
            source: Box::new(source),
        };
        let operator: &dyn Operator = check(node, self.model.opset()).map_err(fail)?;
        let constants: Vec<Option<&Tensor>> =
            node.inputs.iter().map(|name| self.constant_of.get(name.as_str()).copied()).collect();
        let kernel = operator.kernel(node, &constants).map_err(fail)?;
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (position, name) in node.inputs.iter().enumerate() {
            let is_kept = constants[position].is_some() && operator.keeps_constant(position);
            inputs.push(if is_kept { Source::Absent } else { self.source(name, index) });
        }
        // A value read twice by one node dies with the last of the readings.
        for position in 0..inputs.len() {
            let again = |later: &Source| {
                matches!((later, &inputs[position]),
                (Source::Slot(a, _), Source::Slot(b, _)) if a == b)
            };
            if inputs[position + 1..].iter().any(again)
                && let Source::Slot(slot, _) = inputs[position]
            {
                inputs[position] = Source::Slot(slot, false);
            }
        }
        let outputs = (node.outputs.iter())
            .map(|name| self.last_use.contains_key(name.as_str()).then(|| self.slot(name)))
            .collect();
        let observed = (node.outputs.iter().enumerate())
            .filter(|(_, name)| self.observed.contains(name))
            .map(|(position, name)| (position, name.clone()))
            .collect();
        let (node, op_type) = (node.label().to_string(), node.op_type.clone());
        Ok(Step { kernel, inputs, outputs, observed, node, op_type })
    }
}

/// Shows an observed value by name.
type Visit<'a> = &'a mut (dyn FnMut(&str, &Tensor) + Send);

impl BuiltinSession {
    fn execute(
        &mut self,
        feeds: &[(&str, &Tensor)],
        visit: Option<Visit>,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        check_feeds(&self.inputs, feeds)?;
        for (input, &slot) in self.inputs.iter().zip(&self.input_slots) {
            let feed = feeds.iter().find(|(name, _)| *name == input.name);
            self.slots[slot] = feed.map(|(_, tensor)| tensor.aligned());
        }
        let Self { steps, constants, slots, pool, threads, .. } = self;
        let result = threads.install(|| run_steps(steps, constants, slots, pool, visit));
        let outputs = result.map(|()| {
            let take = |source: &Source| match *source {
                Source::Constant(index) => self.constants[index].clone(),
                Source::Slot(slot, _) => {
                    self.slots[slot].clone().expect("an output was computed or fed")
                }
                Source::Absent => unreachable!("outputs have names"),
            };
            self.output_sources.iter().map(take).collect()
        });
        self.slots.iter_mut().filter_map(Option::take).for_each(|tensor| self.pool.recycle(tensor));
        outputs
    }
}

fn run_steps(
    steps: &[Step],
    constants: &[Tensor],
    slots: &mut [Option<Tensor>],
    pool: &Pool,
    mut visit: Option<Visit>,
) -> Result<(), RuntimeError> {
    for step in steps {
        let inputs = (step.inputs.iter())
            .map(|source| match *source {
                Source::Absent => None,
                Source::Constant(index) => Some(constants[index].clone()),
                Source::Slot(slot, true) => slots[slot].take(),
                Source::Slot(slot, false) => slots[slot].clone(),
            })
            .collect();
        let mut run = Run { inputs, pool };
        let outputs = step.kernel.run(&mut run).map_err(|source| RuntimeError::Node {
            node: step.node.clone(),
            op_type: step.op_type.clone(),
            source: Box::new(source),
        })?;
        run.inputs.into_iter().flatten().for_each(|tensor| pool.recycle(tensor));
        if let Some(visit) = &mut visit {
            step.observed.iter().for_each(|(position, name)| visit(name, &outputs[*position]));
        }
        for (tensor, slot) in outputs.into_iter().zip(&step.outputs) {
            match slot {
                Some(slot) => slots[*slot] = Some(tensor),
                None => pool.recycle(tensor),
            }
        }
    }
    Ok(())
}

impl Session for BuiltinSession {
    fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    fn run(&mut self, feeds: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, RuntimeError> {
        self.execute(feeds, None)
    }

    fn observe(
        &mut self,
        feeds: &[(&str, &Tensor)],
        visit: Visit,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        self.execute(feeds, Some(visit))
    }
}
