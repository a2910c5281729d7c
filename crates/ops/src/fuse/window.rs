//! Conv and the clamp after it (`Relu`, or `Clip` with constant bounds) → `FusedConv`.

use attar_graph::{Edit, Links, Model, Node, Plan};

use super::{producer, scalar};
use crate::ATTAR_DOMAIN;

pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, node) in graph.nodes.iter().enumerate() {
        let Some([low, high]) = bounds(&links, node) else { continue };
        let Some((_, conv)) = producer(&links, &node.inputs[0], "Conv") else { continue };
        if links.only_use(&conv.outputs[0]).is_none() {
            continue;
        }
        let mut fused = conv.clone().with_domain(ATTAR_DOMAIN);
        fused.op_type = "FusedConv".into();
        fused.outputs.clone_from(&node.outputs);
        let fused = fused.with_attribute("min", low).with_attribute("max", high);
        plan.push(Edit::ReplaceNode { index, node: fused });
    }
    plan
}

/// The range that a clamping node leaves.
fn bounds(links: &Links, node: &Node) -> Option<[f32; 2]> {
    if node.is("Relu") {
        return Some([0.0, f32::INFINITY]);
    }
    if !node.is("Clip") {
        return None;
    }
    let bound = |index: usize, name: &str, open: f32| match node.input(index) {
        Some(input) => scalar(links, input),
        None => node.float_or(name, open).ok(),
    };
    Some([bound(1, "min", f32::NEG_INFINITY)?, bound(2, "max", f32::INFINITY)?])
}
