//! The residual addition before a `LayerNormalization`.

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::DType;

use super::producer;
use crate::{ATTAR_DOMAIN, infer_graph};

pub fn plan(model: &Model) -> Plan {
    let facts = infer_graph(model);
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    let is_norm = |node: &&Node| node.is("LayerNormalization") && node.outputs.len() == 1;
    for (index, norm) in graph.nodes.iter().enumerate().filter(|(_, node)| is_norm(node)) {
        let Some((_, add)) = producer(&links, &norm.inputs[0], "Add") else { continue };
        let is_f32 = facts.get(&norm.inputs[0]).is_some_and(|fact| fact.dtype == DType::F32);
        if !is_f32 || links.only_use(&add.outputs[0]).is_none() {
            continue;
        }
        let shape = |value: &str| facts.get(value).and_then(|fact| fact.shape.clone());
        let (Some(a), Some(b)) = (shape(&add.inputs[0]), shape(&add.inputs[1])) else { continue };
        if a.len() != b.len() || !a.iter().zip(&b).all(|(a, b)| a.same_as(b)) {
            continue;
        }
        let mut node = norm.clone().with_domain(ATTAR_DOMAIN);
        node.op_type = "SkipLayerNormalization".into();
        node.inputs.splice(0..1, add.inputs.iter().cloned());
        plan.push(Edit::ReplaceNode { index, node });
    }
    plan
}
