//! Who produces and who reads each value.

use std::collections::{HashMap, HashSet};

use crate::{Graph, Node};

/// One place where a value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Index of the node in the outer graph.
    pub node: usize,
    /// Index among its inputs; `None` when a subgraph of the node reads the value.
    pub input: Option<usize>,
}

/// An index over a graph, valid until the graph changes.
pub struct Links<'a> {
    graph: &'a Graph,
    producers: HashMap<&'a str, (usize, usize)>,
    uses: HashMap<&'a str, Vec<Use>>,
    constants: HashMap<&'a str, &'a attar_tensor::Tensor>,
}

impl<'a> Links<'a> {
    pub fn new(graph: &'a Graph) -> Self {
        let mut producers = HashMap::new();
        let mut uses: HashMap<&str, Vec<Use>> = HashMap::new();
        for (index, node) in graph.nodes.iter().enumerate() {
            for (output, name) in node.outputs.iter().enumerate() {
                producers.insert(name.as_str(), (index, output));
            }
            for (input, name) in node.inputs.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
                uses.entry(name).or_default().push(Use { node: index, input: Some(input) });
            }
            for subgraph in node.subgraphs() {
                for_each_name_read(subgraph, &mut |name| {
                    uses.entry(name).or_default().push(Use { node: index, input: None });
                });
            }
        }
        Self { graph, producers, uses, constants: graph.constants().collect() }
    }

    /// The node that produces `value`, with its index.
    pub fn producer(&self, value: &str) -> Option<(usize, &'a Node)> {
        self.producers.get(value).map(|&(index, _)| (index, &self.graph.nodes[index]))
    }

    /// Which output of its node `value` is.
    pub fn output_index(&self, value: &str) -> Option<usize> {
        self.producers.get(value).map(|&(_, output)| output)
    }

    /// Every reader of `value` among nodes, in node order. Graph outputs are not listed.
    pub fn uses(&self, value: &str) -> &[Use] {
        self.uses.get(value).map_or(&[], Vec::as_slice)
    }

    /// The only reader of `value`, if it has one direct reader and is no graph output.
    pub fn only_use(&self, value: &str) -> Option<(usize, &'a Node)> {
        match self.uses(value) {
            [only] if only.input.is_some() && !self.graph.is_output(value) => {
                Some((only.node, &self.graph.nodes[only.node]))
            }
            _ => None,
        }
    }

    pub fn is_read(&self, value: &str) -> bool {
        !self.uses(value).is_empty() || self.graph.is_output(value)
    }

    pub fn constant(&self, name: &str) -> Option<&'a attar_tensor::Tensor> {
        self.constants.get(name).copied()
    }
}

/// Names that nodes of `graph` or of its subgraphs read, and its outputs. Names that the subgraph
/// itself defines are among them: ONNX lets no inner name hide an outer one.
pub(crate) fn for_each_name_read<'a>(graph: &'a Graph, visit: &mut dyn FnMut(&'a str)) {
    let mut open = vec![graph];
    while let Some(graph) = open.pop() {
        for node in &graph.nodes {
            node.inputs.iter().filter(|name| !name.is_empty()).for_each(|name| visit(name));
            open.extend(node.subgraphs());
        }
        graph.outputs.iter().for_each(|output| visit(&output.name));
    }
}

/// Names that `graph`, the body of a node, takes from the graphs around it, each once, in the
/// order of first reading.
pub fn captured_names(graph: &Graph) -> Vec<&str> {
    let mut defined: HashSet<&str> = HashSet::new();
    let mut open = vec![graph];
    while let Some(graph) = open.pop() {
        defined.extend(graph.inputs.iter().map(|input| input.name.as_str()));
        defined.extend(graph.initializers.keys().map(String::as_str));
        for node in &graph.nodes {
            defined.extend(node.outputs.iter().map(String::as_str));
            open.extend(node.subgraphs());
        }
    }
    let mut captured = Vec::new();
    for_each_name_read(graph, &mut |name| {
        // Whatever is seen once counts as defined from then on.
        if defined.insert(name) {
            captured.push(name);
        }
    });
    captured
}

/// Every name that `graph` and the graphs inside its nodes define.
pub fn all_names(graph: &Graph) -> HashSet<String> {
    let mut names = HashSet::new();
    let mut open = vec![graph];
    while let Some(graph) = open.pop() {
        names.extend(graph.inputs.iter().map(|input| input.name.clone()));
        names.extend(graph.initializers.keys().cloned());
        for node in &graph.nodes {
            names.extend(node.outputs.iter().cloned());
            open.extend(node.subgraphs());
        }
    }
    names
}
