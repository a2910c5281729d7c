//! Graphs inside nodes: the branches of If, the bodies of Loop and Scan.

use std::collections::HashMap;

use attar_graph::{AttributeValue, Graph, Model, Node, Value, captured_names};
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

/// The bodies of a node, and the values around it that they capture: these follow the node's own
/// inputs in its runs. `constant_of` holds the constants around it, which become the bodies' own.
///
/// # Errors
/// A body that cannot be made ready. Names its node.
#[allow(clippy::implicit_hasher)] // it is asked for names alone
pub fn bodies<'a>(
    node: &'a Node,
    outer: &Model,
    constant_of: &HashMap<&str, &Tensor>,
) -> Result<(Vec<Body>, Vec<&'a str>), ProgramError> {
    let mut captured: Vec<&str> = Vec::new();
    let mut bodies = Vec::new();
    for (name, attribute) in &node.attributes {
        let AttributeValue::Graph(graph) = &attribute.value else { continue };
        for name in captured_names(graph) {
            if !constant_of.contains_key(name) && !captured.contains(&name) {
                captured.push(name);
            }
        }
        let position_of = |name: &str| {
            let among = captured.iter().position(|captured| *captured == name);
            node.inputs.len() + among.expect("every captured value was listed")
        };
        bodies.push(Body::new(graph, name, outer, constant_of, position_of)?);
    }
    Ok((bodies, captured))
}

impl Body {
    /// Prepares the graph in `attribute`.
    ///
    /// Constants of the graphs around become the body's own; other captured values become inputs
    /// behind its own, and are found in the node's run where `position_of` puts them.
    fn new(
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
