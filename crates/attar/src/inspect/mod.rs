//! What a model is made of: parameters, operations and memory, by operator type and by node.

mod roles;
mod tree;

use std::collections::{BTreeMap, HashMap};

use attar_graph::{Graph, Model, Node, Value};
use attar_ops::{Bindings, Facts, infer_graph};
use attar_tensor::Tensor;
use serde::Serialize;

pub use roles::RoleRow;
pub use tree::TreeRow;

/// A model in numbers.
#[derive(Debug, Serialize)]
pub struct Inspection {
    pub ir_version: i64,
    pub opsets: BTreeMap<String, i64>,
    pub producer: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub node_count: usize,
    /// Elements of all constants of floating point or 8 bits and less.
    pub parameter_count: u64,
    pub weight_bytes: u64,
    /// Bytes of constants by element type.
    pub bytes_by_dtype: BTreeMap<String, u64>,
    /// What the constants are for, and which passes make them smaller.
    pub roles: Vec<RoleRow>,
    /// Sizes that symbols were given for what follows.
    pub sizes: Bindings,
    /// Of If, the branch with more counts; the body of Loop and Scan counts once.
    pub macs: u64,
    pub activation_bytes: u64,
    pub operators: Vec<OperatorRow>,
    pub largest_constants: Vec<ConstantRow>,
    /// Every node, those of bodies after the node that holds them.
    pub nodes: Vec<NodeRow>,
    pub tree: TreeRow,
    /// Nodes whose shapes attar could not infer, with the reason.
    pub problems: Vec<String>,
}

/// All nodes of one operator type.
#[derive(Debug, Serialize)]
pub struct OperatorRow {
    pub op_type: String,
    pub node_count: usize,
    pub macs: u64,
    pub weight_bytes: u64,
    pub activation_bytes: u64,
    /// Whether `builtin` runs it.
    pub is_supported: bool,
}

#[derive(Debug, Serialize)]
pub struct ConstantRow {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub size_bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct NodeRow {
    pub name: String,
    pub op_type: String,
    pub output_shape: String,
    pub parameter_count: u64,
    pub weight_bytes: u64,
    pub macs: Option<u64>,
    pub activation_bytes: Option<u64>,
    /// Whether it counts in the sums: a branch of If that costs less than the other does not.
    pub is_counted: bool,
}

/// Symbols whose size nobody gave: one example of usual size.
const SIZE_DEFAULTS: &[(&str, i64)] =
    &[("batch", 1), ("seq", 128), ("height", 224), ("width", 224)];

/// Measures a model, with `sizes` for its symbols (others get a usual one, 1 if there is none).
pub fn inspect(model: &Model, sizes: &Bindings) -> Inspection {
    let facts = infer_graph(model);
    let sizes = complete(model, sizes);
    let graph = &model.graph;
    let mut walk = Walk { model, facts: &facts, sizes: &sizes, rows: Vec::new() };
    walk.graph(graph, &HashMap::new());
    let nodes = walk.rows;
    let operators = operators(model, &nodes);
    let mut bytes_by_dtype = BTreeMap::new();
    let mut largest_constants = Vec::new();
    let mut parameters = 0;
    let mut open = vec![graph];
    while let Some(graph) = open.pop() {
        for (name, tensor) in graph.constants() {
            let size_bytes = tensor.size_bytes() as u64;
            *bytes_by_dtype.entry(tensor.dtype().to_string()).or_insert(0) += size_bytes;
            parameters += parameter_count(tensor);
            let (dtype, shape) = (tensor.dtype().to_string(), tensor.shape().to_vec());
            largest_constants.push(ConstantRow { name: name.into(), dtype, shape, size_bytes });
        }
        open.extend(graph.nodes.iter().flat_map(Node::subgraphs));
    }
    largest_constants.sort_by_key(|row| std::cmp::Reverse(row.size_bytes));
    largest_constants.truncate(10);
    Inspection {
        ir_version: model.ir_version,
        opsets: model.opsets.iter().map(|(domain, &version)| (domain.clone(), version)).collect(),
        producer: format!("{} {}", model.producer_name, model.producer_version).trim().to_string(),
        inputs: graph.required_inputs().map(describe).collect(),
        outputs: graph.outputs.iter().map(describe).collect(),
        node_count: nodes.len(),
        parameter_count: parameters,
        weight_bytes: bytes_by_dtype.values().sum(),
        bytes_by_dtype,
        roles: roles::roles(graph),
        macs: operators.iter().map(|row| row.macs).sum(),
        activation_bytes: operators.iter().map(|row| row.activation_bytes).sum(),
        sizes,
        operators,
        largest_constants,
        tree: TreeRow::new(&nodes),
        nodes,
        problems: facts.problems.iter().map(|(node, why)| format!("`{node}`: {why}")).collect(),
    }
}

/// Elements of a constant, if it is of floating point or of 8 bits and less.
fn parameter_count(tensor: &Tensor) -> u64 {
    let dtype = tensor.dtype();
    let counts = dtype.is_float() || (dtype.bits() <= 8 && dtype.bits() > 0);
    if counts { tensor.element_count() as u64 } else { 0 }
}

/// Lists nodes with what they cost, bodies included.
struct Walk<'a> {
    model: &'a Model,
    facts: &'a Facts,
    sizes: &'a Bindings,
    rows: Vec<NodeRow>,
}

impl<'a> Walk<'a> {
    fn graph(&mut self, graph: &'a Graph, outer: &HashMap<&'a str, &'a Tensor>) {
        let mut constants = outer.clone();
        constants.extend(graph.constants());
        for node in &graph.nodes {
            let cost = self.facts.cost(node, self.model.opset(), self.sizes, &constants);
            let read = node.inputs.iter().filter_map(|name| constants.get(name.as_str()));
            let shape = node.outputs.first().and_then(|o| self.facts.get(o)?.shape.as_ref());
            self.rows.push(NodeRow {
                name: node.label().to_string(),
                op_type: qualified(node),
                output_shape: shape.map_or("?".into(), |dims| shape_text(dims)),
                parameter_count: read.map(|tensor| parameter_count(tensor)).sum(),
                weight_bytes: cost.weight_bytes,
                macs: cost.macs,
                activation_bytes: cost.activation_bytes,
                is_counted: true,
            });
            let mut branches = Vec::new();
            for body in node.subgraphs() {
                let start = self.rows.len();
                self.graph(body, &constants);
                branches.push(start..self.rows.len());
            }
            if node.is("If") {
                let macs_of = |range: &std::ops::Range<usize>| -> u64 {
                    self.rows[range.clone()].iter().filter_map(|row| row.macs).sum()
                };
                let costs: Vec<u64> = branches.iter().map(macs_of).collect();
                let most =
                    (0..costs.len()).max_by_key(|&index| (costs[index], costs.len() - index));
                for (index, range) in branches.into_iter().enumerate() {
                    if most != Some(index) {
                        self.rows[range].iter_mut().for_each(|row| row.is_counted = false);
                    }
                }
            }
        }
    }
}

/// The nodes by operator type, the costliest type first.
fn operators(model: &Model, nodes: &[NodeRow]) -> Vec<OperatorRow> {
    let mut supported: HashMap<String, bool> = HashMap::new();
    let mut open = vec![&model.graph];
    while let Some(graph) = open.pop() {
        for node in &graph.nodes {
            let runs = attar_ops::runs(model, node);
            *supported.entry(qualified(node)).or_insert(true) &= runs;
            open.extend(node.subgraphs());
        }
    }
    let mut operators: BTreeMap<&str, OperatorRow> = BTreeMap::new();
    for node in nodes {
        let row = operators.entry(&node.op_type).or_insert_with(|| OperatorRow {
            op_type: node.op_type.clone(),
            node_count: 0,
            macs: 0,
            weight_bytes: 0,
            activation_bytes: 0,
            is_supported: supported.get(&node.op_type).copied().unwrap_or(false),
        });
        row.node_count += 1;
        row.weight_bytes += node.weight_bytes;
        if node.is_counted {
            row.macs += node.macs.unwrap_or(0);
            row.activation_bytes += node.activation_bytes.unwrap_or(0);
        }
    }
    let mut operators: Vec<OperatorRow> = operators.into_values().collect();
    operators.sort_by_key(|row| std::cmp::Reverse((row.macs, row.node_count)));
    operators
}

fn qualified(node: &Node) -> String {
    if node.domain.is_empty() {
        node.op_type.clone()
    } else {
        format!("{}.{}", node.domain, node.op_type)
    }
}

/// Every symbol of the inputs with a size.
fn complete(model: &Model, given: &Bindings) -> Bindings {
    let mut sizes = Bindings::new();
    for input in model.graph.required_inputs() {
        let shape = input.shape().unwrap_or(&[]);
        // [batch, channels, height, width], whatever the sizes are called.
        let is_image = shape.len() == 4 && matches!(shape[1].known(), Some(1 | 3));
        for (axis, dim) in shape.iter().enumerate() {
            let mut name_size = |name: &str| {
                let by_name = SIZE_DEFAULTS.iter().find(|(part, _)| name.contains(part));
                let by_axis = if is_image && axis >= 2 { 224 } else { 1 };
                let usual = by_name.map_or(by_axis, |(_, size)| *size);
                sizes.insert(name.to_string(), given.get(name).copied().unwrap_or(usual));
            };
            if dim.is_open() {
                name_size(&format!("{}_{axis}", input.name));
            } else {
                dim.for_each_symbol(&mut name_size);
            }
        }
    }
    sizes
}

fn shape_text(dims: &[attar_graph::Dim]) -> String {
    format!("[{}]", dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

pub(crate) fn describe(value: &Value) -> String {
    let dtype = value.dtype().map_or("?".into(), |dtype| dtype.to_string());
    let shape = value.shape().map_or("[…]".into(), shape_text);
    format!("{} {dtype}{shape}", value.name)
}
