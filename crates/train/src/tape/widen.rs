//! Half types made f32: training sums many small steps, which f16 and bf16 would round away.

use attar_graph::{AttributeValue, Graph, Model, Node, StoredTensor, Value, ValueType};
use attar_tensor::DType;

/// Makes every f16 and bf16 of a model f32: constants, declared types, and what nodes are told to
/// make. Weights that were trained so are rounded once, when they are written back.
pub fn widen_half(model: &mut Model) {
    widen_graph(&mut model.graph);
    for function in &mut model.functions {
        function.nodes.iter_mut().for_each(widen_node);
    }
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

fn widen_graph(graph: &mut Graph) {
    graph.initializers.values_mut().for_each(widen_tensor);
    let values = graph.inputs.iter_mut().chain(&mut graph.outputs).chain(&mut graph.values);
    values.for_each(widen_value);
    graph.nodes.iter_mut().for_each(widen_node);
}

fn widen_value(value: &mut Value) {
    let mut open = value.value_type.as_mut();
    while let Some(value_type) = open.take() {
        match value_type {
            ValueType::Tensor { dtype: Some(dtype), .. } if is_half(*dtype) => *dtype = DType::F32,
            ValueType::Sequence(inner) | ValueType::Optional(inner) => open = inner.as_deref_mut(),
            _ => {}
        }
    }
}

fn widen_node(node: &mut Node) {
    for (name, attribute) in &mut node.attributes {
        match &mut attribute.value {
            AttributeValue::Tensor(stored) => widen_tensor(stored),
            AttributeValue::Tensors(stored) => stored.iter_mut().for_each(widen_tensor),
            // The types that a node is told to make, by ONNX's numbers: 10 is f16, 16 bf16.
            AttributeValue::Int(code @ (10 | 16)) if TYPES.contains(&name.as_str()) => *code = 1,
            _ => {}
        }
    }
    node.subgraphs_mut().for_each(widen_graph);
}

/// Attributes that hold a type.
const TYPES: &[&str] = &["to", "dtype", "output_datatype", "output_dtype", "stash_type"];

fn widen_tensor(stored: &mut StoredTensor) {
    if is_half(stored.tensor.dtype()) {
        let tensor = stored.tensor.converted(DType::F32).expect("floats convert to f32");
        *stored = StoredTensor::from(tensor);
    }
}
