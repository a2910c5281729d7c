//! Turns a graph into steps: where gradients flow, what is kept for them, when values die.

use std::collections::{HashMap, HashSet};

use attar_graph::{Graph, Model, Node, captured_names};
use attar_ops::{Body, Facts, Gradient, OpError, Operator, Training, bodies, check, infer_graph};
use attar_tensor::Tensor;

use super::prepare::Prepared;
use super::{Segment, Source, Step, StepKernel, Tape, TapeOptions};
use crate::TrainError;

pub(super) fn plan(prepared: &Prepared, options: &TapeOptions) -> Result<Tape, TrainError> {
    let mut planner = Planner::new(prepared);
    let graph = &prepared.model.graph;
    let input_slots = graph.required_inputs().map(|input| planner.slot(&input.name)).collect();
    let mut steps = Vec::with_capacity(graph.nodes.len());
    for node in graph.nodes.iter().filter(|node| node.constant().is_none()) {
        steps.push(planner.step(node)?);
    }
    let output_sources: Vec<Source> =
        graph.outputs.iter().map(|output| planner.source(&output.name)).collect();
    let reached = graph.outputs.iter().any(|output| planner.flows.contains(output.name.as_str()));
    if !reached {
        let names: Vec<&str> = graph.outputs.iter().map(|output| output.name.as_str()).collect();
        return Err(TrainError::NothingToTrain { outputs: names.join(", ") });
    }
    let slot_count = planner.slot_of.len();
    plan_lifetimes(&mut steps, &output_sources, slot_count);
    let segments = if options.recompute {
        let segments = segments_of(&steps, &output_sources, slot_count);
        keep_between(&mut steps, &segments);
        segments
    } else {
        vec![Segment { steps: 0..steps.len(), internal: Vec::new(), done: Vec::new() }]
    };
    Ok(Tape {
        inputs: graph.required_inputs().cloned().collect(),
        outputs: graph.outputs.clone(),
        variables: planner.variables,
        trained_count: prepared.trained.len(),
        constants: planner.constants,
        steps,
        slot_count: planner.slot_of.len(),
        input_slots,
        output_sources,
        segments,
    })
}

struct Planner<'a> {
    model: &'a Model,
    graph: &'a Graph,
    opset: i64,
    facts: Facts,
    slot_of: HashMap<&'a str, usize>,
    constant_of: HashMap<&'a str, &'a Tensor>,
    used_constants: HashMap<&'a str, usize>,
    constants: Vec<Tensor>,
    variables: Vec<String>,
    variable_of: HashMap<&'a str, usize>,
    /// Values that depend on a trained initializer through operators with gradients.
    flows: HashSet<&'a str>,
    /// Values that an output depends on through floats alone.
    heard: HashSet<&'a str>,
}

impl<'a> Planner<'a> {
    fn new(prepared: &'a Prepared) -> Self {
        let graph = &prepared.model.graph;
        let trained = prepared.trained.iter().map(String::as_str);
        let facts = infer_graph(&prepared.model);
        Self {
            model: &prepared.model,
            graph,
            opset: prepared.model.opset(),
            heard: heard(graph, &facts),
            facts,
            slot_of: HashMap::new(),
            constant_of: graph.constants().collect(),
            used_constants: HashMap::new(),
            constants: Vec::new(),
            variables: prepared.trained.clone(),
            variable_of: trained.clone().enumerate().map(|(index, name)| (name, index)).collect(),
            flows: trained.collect(),
        }
    }

    fn slot(&mut self, name: &'a str) -> usize {
        let next = self.slot_of.len();
        *self.slot_of.entry(name).or_insert(next)
    }

    fn source(&mut self, name: &'a str) -> Source {
        if name.is_empty() {
            return Source::Absent;
        }
        if let Some(&index) = self.variable_of.get(name) {
            return Source::Variable(index);
        }
        if let Some(tensor) = self.constant_of.get(name) {
            let next = self.constants.len();
            let index = *self.used_constants.entry(name).or_insert(next);
            if index == next {
                self.constants.push(tensor.aligned());
            }
            return Source::Constant(index);
        }
        Source::Slot(self.slot_of[name])
    }

    fn step(&mut self, node: &'a Node) -> Result<Step, TrainError> {
        let fail = |source| TrainError::Node {
            node: node.label().into(),
            op_type: node.op_type.clone(),
            source: Box::new(source),
        };
        let operator = check(node, self.opset).map_err(fail)?;
        let (bodies, captured) = self.bodies(node)?;
        let read = || node.inputs.iter().map(String::as_str).chain(captured.iter().copied());
        let wanted: Vec<bool> = read().map(|name| self.flows.contains(name)).collect();
        let gradient = match self.gradient(node, operator, &wanted) {
            Err(OpError::NoGradient) => return Err(self.no_gradient(node, read())),
            gradient => gradient.map_err(fail)?,
        };
        if let Some(gradient) = &gradient {
            for &index in gradient.states() {
                self.make_variable(node.inputs.get(index).map_or("", String::as_str));
            }
        }
        let kernel = match operator.over_data() {
            Some(over) if gradient.is_none() => {
                over.data_kernel(node, bodies).map(StepKernel::Data)
            }
            _ => operator.kernel(node, &self.constants_of(node)).map(StepKernel::Tensors),
        };
        let kernel = kernel.map_err(fail)?;
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (position, name) in node.inputs.iter().enumerate() {
            let is_constant = self.constants_of(node)[position].is_some();
            let is_read = gradient.as_ref().is_some_and(|g| g.reads().reads_input(position));
            let is_kept = is_constant && operator.keeps_constant(position) && !is_read;
            inputs.push(if is_kept { Source::Absent } else { self.source(name) });
        }
        let names = [read().map(String::from).collect(), node.outputs.clone()];
        inputs.extend(captured.into_iter().map(|name| self.source(name)));
        let is_flowing = gradient.is_some() && wanted.contains(&true);
        for name in node.outputs.iter().filter(|name| !name.is_empty()) {
            let is_float = self.facts.get(name).is_none_or(|fact| fact.dtype.is_float());
            if is_flowing && is_float {
                self.flows.insert(name);
            }
        }
        let outputs = node.outputs.iter().map(|name| (!name.is_empty()).then(|| self.slot(name)));
        Ok(Step {
            kernel,
            outputs: outputs.collect(),
            gradient,
            inputs,
            wanted,
            dies_forward: Vec::new(),
            dies_backward: Vec::new(),
            node: node.label().into(),
            op_type: node.op_type.clone(),
            names,
        })
    }

    /// The bodies of a node, and what they capture. A variable is no constant of a body.
    fn bodies(&self, node: &'a Node) -> Result<(Vec<Body>, Vec<&'a str>), TrainError> {
        if node.subgraphs().next().is_none() {
            return Ok((Vec::new(), Vec::new()));
        }
        let mut constants = self.constant_of.clone();
        constants.retain(|name, _| !self.variable_of.contains_key(name));
        Ok(bodies(node, self.model, &constants)?)
    }

    /// Names the node, and the weights that are before it.
    fn no_gradient(&self, node: &Node, read: impl Iterator<Item = &'a str>) -> TrainError {
        let flowing: Vec<&str> = read.filter(|name| self.flows.contains(name)).collect();
        let mut before: HashSet<&str> = flowing.iter().copied().collect();
        for node in self.graph.nodes.iter().rev() {
            if node.outputs.iter().any(|output| before.contains(output.as_str())) {
                let read = node.inputs.iter().map(String::as_str);
                before.extend(read.filter(|name| self.flows.contains(name)));
            }
        }
        let weights = self.variables.iter().filter(|name| before.contains(name.as_str()));
        let weights: Vec<String> = weights.map(|name| format!("`{name}`")).collect();
        let shown = weights.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
        let more = weights.len().saturating_sub(NAMED_MAX);
        TrainError::NoGradient {
            node: node.label().into(),
            op_type: node.op_type.clone(),
            tensor: flowing.first().copied().unwrap_or("").into(),
            weights: if more > 0 { format!("{shown} and {more} more") } else { shown },
        }
    }

    /// The gradient of a node that flows, or that training runs in its own way.
    fn gradient(
        &self,
        node: &'a Node,
        operator: &dyn Operator,
        wanted: &[bool],
    ) -> Result<Option<Box<dyn Gradient>>, OpError> {
        let is_heard = |name: &String| self.heard.contains(name.as_str());
        let flows = wanted.contains(&true) && node.outputs.iter().any(is_heard);
        if !flows && !operator.differs_in_training() {
            return Ok(None);
        }
        let constants = self.constants_of(node);
        operator.gradient(node, &Training { constants: &constants, wanted }).map(Some)
    }

    /// The contents of a node's inputs that never change.
    fn constants_of(&self, node: &Node) -> Vec<Option<&'a Tensor>> {
        let constant = |name: &String| {
            let is_variable = self.variable_of.contains_key(name.as_str());
            self.constant_of.get(name.as_str()).copied().filter(|_| !is_variable)
        };
        node.inputs.iter().map(constant).collect()
    }

    /// Makes an initializer that training updates a variable.
    fn make_variable(&mut self, name: &str) {
        if self.variable_of.contains_key(name) {
            return;
        }
        if let Some((name, _)) = self.graph.initializers.get_key_value(name) {
            self.variable_of.insert(name, self.variables.len());
            self.variables.push(name.clone());
        }
    }
}

/// Weights that an error names at most.
const NAMED_MAX: usize = 6;

/// Values that an output depends on through floats alone: what a gradient can come back to.
fn heard<'a>(graph: &'a Graph, facts: &Facts) -> HashSet<&'a str> {
    let is_float = |name: &&str| facts.get(name).is_none_or(|fact| fact.dtype.is_float());
    let outputs = graph.outputs.iter().map(|output| output.name.as_str());
    let mut heard: HashSet<&str> = outputs.filter(is_float).collect();
    for node in graph.nodes.iter().rev() {
        if node.outputs.iter().any(|output| heard.contains(output.as_str())) {
            heard.extend(node.inputs.iter().map(String::as_str).filter(is_float));
            heard.extend(node.subgraphs().flat_map(captured_names).filter(is_float));
        }
    }
    heard.remove("");
    heard
}

/// Cuts the steps into segments of about √n, each to be run again on the way back.
fn segments_of(steps: &[Step], outputs: &[Source], slot_count: usize) -> Vec<Segment> {
    let size = (steps.len() as f64).sqrt().ceil() as usize;
    let mut producer: Vec<Option<usize>> = vec![None; slot_count];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); slot_count];
    for (index, step) in steps.iter().enumerate() {
        step.outputs.iter().flatten().for_each(|&slot| producer[slot] = Some(index / size));
        for source in &step.inputs {
            if let Source::Slot(slot) = *source {
                readers[slot].push(index / size);
            }
        }
    }
    let starts = (0..steps.len()).step_by(size.max(1));
    let segment = |start: usize| {
        let range = start..(start + size).min(steps.len());
        Segment { steps: range, internal: Vec::new(), done: Vec::new() }
    };
    let mut segments: Vec<Segment> = starts.map(segment).collect();
    for slot in 0..slot_count {
        let is_output = outputs.contains(&Source::Slot(slot));
        let first_reader = readers[slot].iter().min().copied();
        if let Some(home) = producer[slot] {
            if !is_output && readers[slot].iter().all(|&reader| reader == home) {
                segments[home].internal.push(slot);
            } else if !is_output {
                segments[home].done.push(slot);
            }
        }
        if let Some(first) = first_reader.filter(|_| !is_output) {
            segments[first].done.push(slot);
        }
    }
    segments
}

/// What crosses a border between segments dies with a segment, not with a step.
fn keep_between(steps: &mut [Step], segments: &[Segment]) {
    for segment in segments {
        let is_internal = |slot: &usize| segment.internal.contains(slot);
        for step in &mut steps[segment.steps.clone()] {
            step.dies_forward.retain(is_internal);
            step.dies_backward.retain(is_internal);
        }
    }
}

/// Decides after which step, forward or going back, each slot is needed no more.
fn plan_lifetimes(steps: &mut [Step], outputs: &[Source], slot_count: usize) {
    let mut last_forward: Vec<Option<usize>> = vec![None; slot_count];
    let mut last_backward: Vec<Option<usize>> = vec![None; slot_count];
    for (index, step) in steps.iter().enumerate() {
        let reads = step.gradient.as_ref().map(|gradient| gradient.reads());
        for (position, source) in step.inputs.iter().enumerate() {
            let Source::Slot(slot) = *source else { continue };
            last_forward[slot] = Some(index);
            if reads.is_some_and(|reads| reads.reads_input(position)) {
                last_backward[slot] = last_backward[slot].or(Some(index));
            }
        }
        for (position, slot) in step.outputs.iter().enumerate() {
            let Some(slot) = *slot else { continue };
            last_forward[slot] = Some(index);
            if reads.is_some_and(|reads| reads.reads_output(position)) {
                last_backward[slot] = Some(index);
            }
        }
    }
    for slot in 0..slot_count {
        match (last_forward[slot], last_backward[slot]) {
            (_, Some(index)) => steps[index].dies_backward.push(slot),
            (Some(_), None) if outputs.contains(&Source::Slot(slot)) => {}
            (Some(index), None) => steps[index].dies_forward.push(slot),
            (None, None) => {}
        }
    }
}
