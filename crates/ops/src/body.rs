//! Graphs inside nodes: the branches of If, the bodies of Loop and Scan.

use std::collections::HashMap;

use attar_graph::{Graph, Model, Value, captured_names};
use attar_tensor::Tensor;

use crate::program::{Program, ProgramError};
use crate::{DataRun, Datum, OpError};

/// A subgraph made ready to run.
pub struct Body {
    program: Program,
    /// Name of the attribute that holds the graph.
    attribute: String,
    /// How many inputs the graph itself has; what it captures follows them.
    input_count: usize,
    /// For each captured value, its index among the inputs of the node's run.
    captured: Vec<usize>,
}

impl Body {
    /// Prepares the graph in `attribute`.
    ///
    /// Constants of the graphs around become the body's own; other captured values become inputs
    /// behind its own, and are found in the node's run where `position_of` puts them.
    pub(crate) fn new(
        graph: &Graph,
        attribute: &str,
        outer: &Model,
        constant_of: &HashMap<&str, &Tensor>,
        mut position_of: impl FnMut(&str) -> usize,
    ) -> Result<Self, ProgramError> {
        let mut lifted = graph.clone();
        let mut captured = Vec::new();
        for name in captured_names(graph) {
            if let Some(tensor) = constant_of.get(name) {
                lifted.set_initializer(name, (*tensor).clone());
            } else {
                lifted.inputs.push(Value::untyped(name));
                captured.push(position_of(name));
            }
        }
        let model = Model { graph: lifted, ..outer.without_graph() };
        let program = Program::new(model, &[])?;
        let attribute = attribute.to_string();
        Ok(Self { program, attribute, input_count: graph.required_inputs().count(), captured })
    }

    /// Name of the attribute that holds the graph.
    pub fn attribute(&self) -> &str {
        &self.attribute
    }

    /// How many inputs the graph itself has.
    pub fn input_count(&self) -> usize {
        self.input_count
    }

    pub fn output_count(&self) -> usize {
        self.program.outputs().len()
    }

    /// Runs the graph on its own inputs, with what it captures taken from the node's run.
    ///
    /// # Errors
    /// [`OpError::Inner`], naming the failing node.
    pub fn run(&self, inputs: Vec<Datum>, run: &DataRun) -> Result<Vec<Datum>, OpError> {
        if inputs.len() != self.input_count {
            let expected = self.input_count.to_string();
            return Err(OpError::value("the count of the body's inputs", inputs.len(), expected));
        }
        let mut feeds = inputs;
        for &position in &self.captured {
            feeds.push(run.input(position)?.clone());
        }
        self.program.run(feeds, run.pool).map_err(OpError::from)
    }
}
