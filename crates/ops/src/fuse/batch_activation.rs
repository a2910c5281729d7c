//! A batch normalization in training and the activation behind it → `FusedBatchNormalization`: one
//! pass for both, forward and backward, and one tensor less to keep.

use attar_graph::{AttributeValue, Edit, Links, Model, Node, Plan};

use super::window::bounds;
use crate::ATTAR_DOMAIN;

pub(super) fn plan(model: &Model) -> Plan {
    let links = Links::new(&model.graph);
    let mut plan = Plan::default();
    for (index, norm) in model.graph.nodes.iter().enumerate() {
        if !norm.is("BatchNormalization") || norm.outputs.len() != 1 {
            continue;
        }
        let Some((last, next)) = links.only_use(&norm.outputs[0]) else { continue };
        let Some((name, params)) = activation(&links, next) else { continue };
        let mut node = norm.clone().with_attribute("activation", name);
        if !params.is_empty() {
            node = node.with_attribute("activation_params", AttributeValue::Floats(params));
        }
        node.op_type = "FusedBatchNormalization".into();
        node.domain = ATTAR_DOMAIN.into();
        node.outputs.clone_from(&next.outputs);
        plan.push(Edit::RemoveNode { index });
        plan.push(Edit::ReplaceNode { index: last, node });
    }
    plan
}

/// The activation that a node is, with its parameters.
fn activation(links: &Links, node: &Node) -> Option<(&'static str, Vec<f32>)> {
    if node.is("HardSwish") {
        return Some(("HardSwish", Vec::new()));
    }
    let [low, high] = bounds(links, node)?;
    Some(("Clip", vec![low, high]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    #[test]
    fn an_activation_joins_the_normalization_before_it_unless_another_reads_that() {
        let head = "x: f32[2, 3]\ng: f32[3]\na = BatchNormalization(x, g, g, g, g)\n";
        for (tail, count) in [("y = Relu(a)", 2), ("y = Relu(a)\nz = Add(a, y)", 0)] {
            let graph = graph_from_text(&format!("{head}{tail}"));
            let plan = plan(&Model { graph, ..Model::default() });
            assert_eq!(plan.edits.len(), count, "{tail}");
        }
    }
}
