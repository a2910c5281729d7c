//! What a model's constants are for, and which passes make them smaller.

use std::collections::BTreeMap;

use attar_graph::{Graph, Node};
use attar_tensor::Tensor;
use serde::Serialize;

/// Constants of one use.
#[derive(Debug, Serialize)]
pub struct RoleRow {
    pub role: &'static str,
    pub constant_count: usize,
    pub parameter_count: u64,
    pub size_bytes: u64,
    /// Passes that make them smaller; empty where none does.
    pub passes: &'static [&'static str],
}

/// Roles in the order in which they are shown, with the passes for each.
const ROLES: &[(&str, &[&str])] = &[
    ("weights of products", &["quantize.static", "quantize.dynamic", "prune.magnitude"]),
    ("weights of convolutions", &["quantize.static", "prune.magnitude"]),
    ("embedding tables", &["quantize.static", "quantize.dynamic"]),
    ("weights of recurrent layers", &[]),
    ("in 8 bits or less already", &[]),
    ("other", &[]),
];

/// Index into [`ROLES`] of what input `input` of `node` is for.
fn role(node: &Node, input: usize, tensor: &Tensor) -> usize {
    if tensor.dtype().bits() <= 8 && tensor.dtype().bits() > 0 {
        return 4;
    }
    if !tensor.dtype().is_float() {
        return 5;
    }
    match (node.op_type.as_str(), input) {
        ("MatMul" | "Gemm" | "FusedMatMul" | "FusedGemm", 0 | 1)
        | ("Attention" | "DynamicQuantizeMatMul", 1)
            if tensor.rank() >= 2 =>
        {
            0
        }
        ("Conv" | "ConvTranspose" | "FusedConv", 1) => 1,
        ("Gather", 0) | ("EmbedLayerNormalization", 2..=4) if tensor.rank() == 2 => 2,
        ("LSTM" | "GRU" | "RNN", 1 | 2) => 3,
        _ => 5,
    }
}

/// All constants by role; roles that nothing has are left out.
pub(super) fn roles(graph: &Graph) -> Vec<RoleRow> {
    let mut rows: Vec<RoleRow> = (ROLES.iter())
        .map(|&(role, passes)| RoleRow {
            role,
            constant_count: 0,
            parameter_count: 0,
            size_bytes: 0,
            passes,
        })
        .collect();
    let mut found: BTreeMap<&str, (usize, &Tensor)> = BTreeMap::new();
    let mut open = vec![graph];
    let mut constants: BTreeMap<&str, &Tensor> = BTreeMap::new();
    while let Some(graph) = open.pop() {
        constants.extend(graph.constants());
        open.extend(graph.nodes.iter().flat_map(Node::subgraphs));
    }
    open.push(graph);
    while let Some(graph) = open.pop() {
        for node in &graph.nodes {
            for (input, name) in node.inputs.iter().enumerate() {
                let Some(tensor) = constants.get(name.as_str()) else { continue };
                let role = role(node, input, tensor);
                // The first use that has a role of its own decides.
                found
                    .entry(name)
                    .and_modify(|entry| entry.0 = entry.0.min(role))
                    .or_insert((role, tensor));
            }
            open.extend(node.subgraphs());
        }
    }
    for (role, tensor) in found.into_values() {
        rows[role].constant_count += 1;
        rows[role].parameter_count += super::parameter_count(tensor);
        rows[role].size_bytes += tensor.size_bytes() as u64;
    }
    rows.retain(|row| row.constant_count > 0);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pass_named_exists() {
        for (_, passes) in ROLES {
            for pass in *passes {
                assert!(attar_compress::pass_entry(pass).is_ok(), "{pass}");
            }
        }
    }
}
