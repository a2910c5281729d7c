//! `QuantizeLinear` read only by a `DequantizeLinear` with the same scalars → one operator.

use std::collections::HashSet;

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::DType;

use super::producer;
use crate::ATTAR_DOMAIN;
use crate::quantize_linear::integer_range;

/// As [`plan`], for training: of every type and granularity, since nothing flows through integers.
/// The scale may be a trained one.
pub(super) fn plan_trained(model: &Model, trained: &HashSet<String>) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    let is_same = |a: Option<&str>, b: Option<&str>| match (a, b) {
        (Some(a), Some(b)) if a != b => {
            let is_fixed = !trained.contains(a) && !trained.contains(b);
            let (a, b) = (links.constant(a), links.constant(b));
            is_fixed && a.is_some() && a == b
        }
        (a, b) => a == b,
    };
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, n)| n.is("DequantizeLinear")) {
        let Some((_, quantize)) = producer(&links, &node.inputs[0], "QuantizeLinear") else {
            continue;
        };
        let is_pair = ["axis", "block_size"]
            .iter()
            .all(|name| node.attribute(name) == quantize.attribute(name));
        let is_plain = node.attribute("output_dtype").is_none()
            && quantize.attribute("precision").is_none()
            && is_same(node.input(1), quantize.input(1))
            && is_same(node.input(2), quantize.input(2));
        if is_pair && is_plain {
            let mut pair = quantize.clone();
            pair.op_type = "QuantizeDequantize".into();
            pair.name.clone_from(&node.name);
            pair.outputs.clone_from(&node.outputs);
            plan.push(Edit::ReplaceNode { index, node: pair.with_domain(ATTAR_DOMAIN) });
        }
    }
    plan
}

pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, n)| n.is("DequantizeLinear")) {
        let Some((_, quantize)) = producer(&links, &node.inputs[0], "QuantizeLinear") else {
            continue;
        };
        let is_scalar = |input: usize, fits: fn(DType) -> bool| {
            let constant = quantize.input(input).and_then(|name| links.constant(name));
            constant.is_some_and(|tensor| tensor.element_count() == 1 && fits(tensor.dtype()))
        };
        let is_pair = is_scalar(1, |dtype| dtype == DType::F32)
            && is_scalar(2, |dtype| integer_range(dtype).is_some())
            && quantize.attribute("precision").is_none()
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

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    /// How many pairs become fake quantizations, where `trained` is a trained value.
    fn pairs(text: &str, trained: &str) -> usize {
        let model = Model { graph: graph_from_text(text), ..Model::default() };
        plan_trained(&model, &HashSet::from([trained.to_string()])).edits.len()
    }

    #[test]
    fn a_pair_of_any_granularity_trains_as_one_operator() {
        let scales = "s = [0.5 0.25]\nt = [0.5 0.25]\n";
        let pair = |q: &str, d: &str| {
            format!("{scales}q = QuantizeLinear({q})\ny = DequantizeLinear(q, {d})")
        };
        assert_eq!(pairs(&pair("x, s, z, axis=0", "s, z, axis=0"), "s"), 1);
        assert_eq!(pairs(&pair("x, s", "s"), "s"), 1);
        // Two scales that are equal now, unless one of them learns.
        assert_eq!(pairs(&pair("x, s", "t"), "w"), 1);
        assert_eq!(pairs(&pair("x, s", "t"), "s"), 0);
        assert_eq!(pairs(&pair("x, s, z, axis=0", "s, z, axis=1"), "s"), 0);
        assert_eq!(pairs(&pair("x, s, z", "s"), "s"), 0);
    }
}
