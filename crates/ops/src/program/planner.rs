//! Turns a graph into steps over numbered slots.

use std::collections::HashMap;

use attar_graph::{Graph, Model, Node, captured_names};
use attar_tensor::{DType, Tensor};

use super::{Program, ProgramError, Source, Step, StepKernel};
use crate::{bodies, check};

pub(super) fn plan(model: &Model, observed: &[String]) -> Result<Program, ProgramError> {
    Planner::new(model, observed).plan()
}

/// Smaller constants are copied, wherever they are read from.
const IN_PLACE_BYTES_MIN: usize = 1 << 20;

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
    fn new(model: &'a Model, observed: &'a [String]) -> Self {
        let graph = &model.graph;
        let mut last_use = HashMap::new();
        for (index, node) in graph.nodes.iter().enumerate() {
            last_use.extend(node.inputs.iter().map(|name| (name.as_str(), index)));
            for body in node.subgraphs() {
                last_use.extend(captured_names(body).into_iter().map(|name| (name, index)));
            }
        }
        // What the model returns outlives every node.
        last_use.extend(graph.outputs.iter().map(|output| (output.name.as_str(), usize::MAX)));
        Self {
            model,
            observed,
            slot_of: HashMap::new(),
            constant_of: graph.constants().collect(),
            used_constants: HashMap::new(),
            constants: Vec::new(),
            last_use,
        }
    }

    fn plan(mut self) -> Result<Program, ProgramError> {
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
        let output_sources = graph
            .outputs
            .iter()
            .map(|output| self.source(&output.name, usize::MAX, false))
            .collect();
        Ok(Program {
            inputs: graph.required_inputs().cloned().collect(),
            outputs: graph.outputs.clone(),
            steps,
            input_slots,
            output_sources,
            slot_count: self.slot_of.len(),
            constants: self.constants,
        })
    }

    fn slot(&mut self, name: &'a str) -> usize {
        let next = self.slot_of.len();
        *self.slot_of.entry(name).or_insert(next)
    }

    /// Where a value comes from; a constant on a cache line, unless it is to stay `in_place`.
    fn source(&mut self, name: &'a str, node: usize, in_place: bool) -> Source {
        if name.is_empty() {
            return Source::Absent;
        }
        if let Some(tensor) = self.constant_of.get(name) {
            let next = self.constants.len();
            let index = *self.used_constants.entry(name).or_insert(next);
            if index == next {
                self.constants.push(if in_place {
                    Tensor::clone(tensor)
                } else {
                    tensor.aligned()
                });
            } else if !in_place {
                self.constants[index] = self.constants[index].aligned();
            }
            return Source::Constant(index);
        }
        Source::Slot(self.slot_of[name], self.last_use.get(name) == Some(&node))
    }

    fn step(&mut self, index: usize, node: &'a Node) -> Result<Step, ProgramError> {
        let fail = |source| ProgramError::Node {
            node: node.label().into(),
            op_type: node.op_type.clone(),
            source: Box::new(source),
        };
        let operator = check(node, self.model.opset()).map_err(fail)?;
        let constants: Vec<Option<&Tensor>> =
            node.inputs.iter().map(|name| self.constant_of.get(name.as_str()).copied()).collect();
        let (bodies, captured) = bodies(node, self.model, &self.constant_of)?;
        let kernel = match operator.over_data() {
            Some(operator) => operator.data_kernel(node, bodies).map(StepKernel::Data),
            None if operator.widens_half() => {
                let widened = widened(&constants);
                let seen: Vec<Option<&Tensor>> = widened.iter().map(Option::as_ref).collect();
                operator.kernel(node, &seen).map(StepKernel::Tensors)
            }
            None => operator.kernel(node, &constants).map(StepKernel::Tensors),
        };
        let kernel = kernel.map_err(fail)?;
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (position, name) in node.inputs.iter().enumerate() {
            let is_kept = constants[position].is_some() && operator.keeps_constant(position);
            let in_place = constants[position]
                .is_some_and(|c| c.size_bytes() >= IN_PLACE_BYTES_MIN)
                && operator.reads_in_place(position);
            inputs.push(if is_kept { Source::Absent } else { self.source(name, index, in_place) });
        }
        inputs.extend(captured.into_iter().map(|name| self.source(name, index, false)));
        read_last(&mut inputs);
        let outputs = (node.outputs.iter())
            .map(|name| self.last_use.contains_key(name.as_str()).then(|| self.slot(name)))
            .collect();
        let observed = (node.outputs.iter().enumerate())
            .filter(|(_, name)| self.observed.contains(name))
            .map(|(position, name)| (position, name.clone()))
            .collect();
        let (node, op_type) = (node.label().to_string(), node.op_type.clone());
        let widens_half = operator.widens_half();
        Ok(Step { kernel, widens_half, inputs, outputs, observed, node, op_type })
    }
}

/// Constants as a kernel that widens them will see them.
fn widened(constants: &[Option<&Tensor>]) -> Vec<Option<Tensor>> {
    let widen = |tensor: &Tensor| match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.converted(DType::F32).expect("floats convert to f32"),
        _ => tensor.clone(),
    };
    constants.iter().map(|constant| constant.map(widen)).collect()
}

/// A value read twice by one node dies with the last of the readings.
fn read_last(inputs: &mut [Source]) {
    for position in 0..inputs.len() {
        let Source::Slot(slot, true) = inputs[position] else { continue };
        let again = |later: &Source| matches!(later, Source::Slot(other, _) if *other == slot);
        if inputs[position + 1..].iter().any(again) {
            inputs[position] = Source::Slot(slot, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;
    use attar_tensor::Bytes;

    use super::*;
    use crate::{Datum, Pool};

    /// A table of 1 MiB that begins at an odd address.
    fn table() -> Tensor {
        let values: Vec<f32> = (0..1 << 18).map(|x| x as f32 / 7.0).collect();
        // Allocations begin at even addresses.
        let bytes = Bytes::from([&[0_u8], bytemuck::cast_slice(&values)].concat()).slice(1..);
        Tensor::from_bytes(DType::F32, &[1 << 14, 16], bytes).unwrap()
    }

    fn program(text: &str) -> Program {
        let mut graph = graph_from_text(text);
        graph.set_initializer("t", table());
        graph.inputs.retain(|input| input.name != "t");
        let opsets = [(String::new(), 17)].into_iter().collect();
        Program::new(Model { graph, opsets, ..Model::default() }, &[]).unwrap()
    }

    fn first_output(program: &Program) -> Tensor {
        let feeds = vec![Datum::Tensor(Tensor::new(&[2], &[5_i64, -1]))];
        let outputs = program.run(feeds, &Pool::default()).unwrap();
        outputs.into_iter().next().unwrap().into_tensor(0).unwrap()
    }

    #[test]
    fn rows_of_a_large_table_are_read_where_the_table_is() {
        let program = program("i: i64[n]\ny = Gather(t, i)");
        assert!(program.constants[0].bytes().as_ptr().addr() % 2 == 1, "it was not copied");
        let y = first_output(&program);
        assert_eq!(y.shape(), [2, 16]);
        let expected = (80..96).chain((1 << 18) - 16..1 << 18).map(|x| x as f32 / 7.0);
        assert!(y.slice::<f32>().iter().copied().eq(expected));
    }

    #[test]
    fn what_another_operator_reads_too_is_on_a_cache_line() {
        for text in
            ["i: i64[n]\ny = Gather(t, i)\nz = Neg(t)", "i: i64[n]\nz = Neg(t)\ny = Gather(t, i)"]
        {
            let program = program(text);
            assert!(program.constants[0].bytes().as_ptr().addr().is_multiple_of(64), "{text}");
        }
    }
}
