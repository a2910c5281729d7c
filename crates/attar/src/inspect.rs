//! What a model is made of: parameters, operations and memory, by operator type and by node.

use std::collections::BTreeMap;

use attar_graph::{Model, Value};
use attar_ops::{Bindings, infer_graph};
use serde::Serialize;

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
    /// Sizes that symbols were given for what follows.
    pub sizes: Bindings,
    pub macs: u64,
    pub activation_bytes: u64,
    pub operators: Vec<OperatorRow>,
    pub largest_constants: Vec<ConstantRow>,
    pub nodes: Vec<NodeRow>,
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
    pub macs: Option<u64>,
    pub weight_bytes: u64,
}

/// Symbols whose size nobody gave: one example of usual size.
const SIZE_DEFAULTS: &[(&str, i64)] =
    &[("batch", 1), ("seq", 128), ("height", 224), ("width", 224)];

/// Measures a model, with `sizes` for its symbols (others get a usual one, 1 if there is none).
pub fn inspect(model: &Model, sizes: &Bindings) -> Inspection {
    let facts = infer_graph(model);
    let sizes = complete(model, sizes);
    let costs = facts.costs(model, &sizes);
    let graph = &model.graph;
    let mut operators: BTreeMap<String, OperatorRow> = BTreeMap::new();
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for (node, cost) in graph.nodes.iter().zip(&costs) {
        let row = operators.entry(qualified(node)).or_insert_with(|| OperatorRow {
            op_type: qualified(node),
            node_count: 0,
            macs: 0,
            weight_bytes: 0,
            activation_bytes: 0,
            is_supported: attar_ops::check(node, model.opset()).is_ok(),
        });
        row.node_count += 1;
        row.macs += cost.macs.unwrap_or(0);
        row.weight_bytes += cost.weight_bytes;
        row.activation_bytes += cost.activation_bytes.unwrap_or(0);
        let shape = node.outputs.first().and_then(|output| facts.get(output)?.shape.as_ref());
        nodes.push(NodeRow {
            name: node.label().to_string(),
            op_type: qualified(node),
            output_shape: shape.map_or("?".into(), |dims| shape_text(dims)),
            macs: cost.macs,
            weight_bytes: cost.weight_bytes,
        });
    }
    let mut operators: Vec<OperatorRow> = operators.into_values().collect();
    operators.sort_by_key(|row| std::cmp::Reverse((row.macs, row.node_count)));
    let mut bytes_by_dtype = BTreeMap::new();
    let mut largest_constants = Vec::new();
    let mut parameter_count = 0;
    for (name, tensor) in graph.constants() {
        let size_bytes = tensor.size_bytes() as u64;
        *bytes_by_dtype.entry(tensor.dtype().to_string()).or_insert(0) += size_bytes;
        if tensor.dtype().is_float() || tensor.dtype().bits() <= 8 {
            parameter_count += tensor.element_count() as u64;
        }
        let (dtype, shape) = (tensor.dtype().to_string(), tensor.shape().to_vec());
        largest_constants.push(ConstantRow { name: name.into(), dtype, shape, size_bytes });
    }
    largest_constants.sort_by_key(|row| std::cmp::Reverse(row.size_bytes));
    largest_constants.truncate(10);
    Inspection {
        ir_version: model.ir_version,
        opsets: model.opsets.iter().map(|(domain, &version)| (domain.clone(), version)).collect(),
        producer: format!("{} {}", model.producer_name, model.producer_version).trim().to_string(),
        inputs: graph.required_inputs().map(describe).collect(),
        outputs: graph.outputs.iter().map(describe).collect(),
        node_count: graph.nodes.len(),
        parameter_count,
        weight_bytes: bytes_by_dtype.values().sum(),
        bytes_by_dtype,
        macs: operators.iter().map(|row| row.macs).sum(),
        activation_bytes: operators.iter().map(|row| row.activation_bytes).sum(),
        sizes,
        operators,
        largest_constants,
        nodes,
        problems: facts.problems.iter().map(|(node, why)| format!("`{node}`: {why}")).collect(),
    }
}

fn qualified(node: &attar_graph::Node) -> String {
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
        for (axis, dim) in input.shape().unwrap_or(&[]).iter().enumerate() {
            let mut name_size = |name: &str| {
                let usual = SIZE_DEFAULTS.iter().find(|(part, _)| name.contains(part));
                let size = given.get(name).copied().or(usual.map(|(_, size)| *size)).unwrap_or(1);
                sizes.insert(name.to_string(), size);
            };
            if *dim == attar_graph::Dim::Unknown {
                name_size(&format!("{}_{axis}", input.name));
            }
            dim.for_each_symbol(&mut name_size);
        }
    }
    sizes
}

fn shape_text(dims: &[attar_graph::Dim]) -> String {
    format!("[{}]", dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

fn describe(value: &Value) -> String {
    let dtype = value.dtype().map_or("?".into(), |dtype| dtype.to_string());
    let shape = value.shape().map_or("[…]".into(), shape_text);
    format!("{} {dtype}{shape}", value.name)
}
