//! Leaves out what does nothing: the graph computes the same with fewer nodes and bytes.

use std::collections::HashMap;

use attar_graph::{Edit, Model, Plan};
use attar_ops::{fold_constants, fuse::dead_nodes};
use serde::Deserialize;

use crate::{Context, Pass, PassError};

/// Constant folding, identities, duplicate initializers and dead nodes, until none is left.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cleanup {}

impl Pass for Cleanup {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        // One kind at a time: each plan is made for the graph that the one before left.
        let steps = [
            |model: &Model, _: &Context| fold_constants(model, true),
            identities,
            duplicates,
            |model: &Model, _: &Context| dead_nodes::plan(model),
        ];
        let first = steps.iter().map(|step| step(model, context)).find(|plan| !plan.is_empty());
        Ok(first.unwrap_or_default())
    }

    fn repeats(&self) -> bool {
        true
    }
}

/// `Identity`, `Dropout` without a mask that is read, and transposes that move nothing. Where the
/// output is one of the graph, the node stays: it gives the value its name.
fn identities(model: &Model, _: &Context) -> Plan {
    let graph = &model.graph;
    let links = attar_graph::Links::new(graph);
    let mut plan = Plan::default();
    for (index, node) in graph.nodes.iter().enumerate() {
        let is_identity = node.is("Identity")
            || (node.is("Dropout") && !node.outputs[1..].iter().any(|mask| links.is_read(mask)))
            || (node.is("Transpose")
                && node.ints("perm").is_ok_and(|perm| {
                    perm.is_some_and(|perm| perm.iter().enumerate().all(|(i, &p)| i as i64 == p))
                }));
        if is_identity && !graph.is_output(&node.outputs[0]) {
            let (from, to) = (node.outputs[0].clone(), node.inputs[0].clone());
            plan.push(Edit::ReplaceUses { from, to });
            plan.push(Edit::RemoveNode { index });
        }
    }
    plan
}

/// Initializers with the same bytes: all readers take the first.
fn duplicates(model: &Model, context: &Context) -> Plan {
    let graph = &model.graph;
    let mut first: HashMap<(attar_tensor::DType, &[usize], &[u8]), &str> = HashMap::new();
    let mut plan = Plan::default();
    for (name, stored) in &graph.initializers {
        let tensor = &stored.tensor;
        let is_input = graph.inputs.iter().any(|input| input.name == *name);
        // Small ones are not worth a tie between parts that may be compressed apart.
        if tensor.size_bytes() < 64
            || tensor.dtype() == attar_tensor::DType::String
            || is_input
            || graph.is_output(name)
            || context.exclude.matches(name)
        {
            continue;
        }
        match first.entry((tensor.dtype(), tensor.shape(), tensor.bytes())) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(name);
            }
            std::collections::hash_map::Entry::Occupied(entry) => {
                let (from, to) = (name.clone(), (*entry.get()).to_string());
                plan.push(Edit::ReplaceUses { from: from.clone(), to });
                plan.push(Edit::RemoveInitializer { name: from });
            }
        }
    }
    plan
}
