//! `QuantizeLinear` read only by a `DequantizeLinear` with the same scalars → one operator.

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::DType;

use super::producer;
use crate::ATTAR_DOMAIN;

pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, n)| n.is("DequantizeLinear")) {
        let Some((_, quantize)) = producer(&links, &node.inputs[0], "QuantizeLinear") else {
            continue;
        };
        let is_scalar = |input: usize, dtype: DType| {
            let constant = quantize.input(input).and_then(|name| links.constant(name));
            constant.is_some_and(|tensor| tensor.element_count() == 1 && tensor.dtype() == dtype)
        };
        let is_pair = is_scalar(1, DType::F32)
            && is_scalar(2, DType::U8)
            && node.inputs[1..] == quantize.inputs[1..]
            && links.only_use(&quantize.outputs[0]).is_some();
        if is_pair {
            let inputs: Vec<&str> = quantize.inputs.iter().map(String::as_str).collect();
            let pair = Node::new("QuantizeDequantize", &node.name, &inputs, &[&node.outputs[0]]);
            plan.push(Edit::ReplaceNode { index, node: pair.with_domain(ATTAR_DOMAIN) });
        }
    }
    plan
}
