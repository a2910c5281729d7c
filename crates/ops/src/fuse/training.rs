//! A model as it is trained: nodes of the newest meaning, constants folded, groups fused where the
//! fused operator reads the trained weights as they stand.

use std::collections::HashSet;

use attar_graph::{GraphError, Model, Plan, Value, apply};

use super::{
    Rewrite, attention, batch_activation, channels_last, dead_nodes, gelu, hard_swish,
    layer_normalization, linear, quantize_dequantize, skip_layer_normalization, window,
};
use crate::fold_constants;
use crate::opset::{NEWEST_OPSET, OpsetError, prepared};

/// Rewrites that leave initializers alone, in order.
const TRAINING_REWRITES: &[Rewrite] = &[
    ("layer-normalization", layer_normalization::plan),
    ("gelu", gelu::plan),
    ("dead-nodes", dead_nodes::plan),
    ("attention", attention::plan),
    ("bias", linear::plan_bias),
    ("activation", linear::plan_activation),
    ("hard-swish", hard_swish::plan),
    ("dead-nodes", dead_nodes::plan),
    ("skip-layer-normalization", skip_layer_normalization::plan),
    ("dead-nodes", dead_nodes::plan),
];

/// Rewrites that would put constants into weights, or move them: to them, trained initializers are
/// values like others.
const AROUND_TRAINED: &[Rewrite] = &[
    ("batch-activation", batch_activation::plan),
    ("window", window::plan),
    ("channels-last", channels_last::plan),
    ("dead-nodes", dead_nodes::plan),
];

/// A model made ready for a tape that changes the initializers named in `trained`; with `fuse`,
/// with its groups of nodes put into single operators. Trained constants are initializers in the
/// result, under their names.
///
/// # Errors
/// A node of an operator set that has no counterpart in the newest, or a broken graph.
#[allow(clippy::implicit_hasher)] // it is asked for names alone
pub fn for_training(
    model: &Model,
    trained: &HashSet<String>,
    fuse: bool,
) -> Result<Model, OpsetError> {
    let mut model = match prepared(model)? {
        Some(prepared) => prepared,
        None => model.clone(),
    };
    let newest = model.opset().max(NEWEST_OPSET);
    model.opsets.insert(String::new(), newest);
    lift_constants(&mut model, trained);
    // Constants are folded with the trained ones unknown, so that none is folded into another.
    around_trained(&mut model, trained, |model| fold_constants(model, false))?;
    let plan = quantize_dequantize::plan_trained(&model, trained);
    apply(&mut model.graph, &plan)?;
    if fuse {
        for (_, plan) in TRAINING_REWRITES {
            let plan = plan(&model);
            apply(&mut model.graph, &plan)?;
        }
        for (_, plan) in AROUND_TRAINED {
            around_trained(&mut model, trained, plan)?;
        }
    }
    Ok(model)
}

/// Makes initializers of trained `Constant` nodes.
fn lift_constants(model: &mut Model, trained: &HashSet<String>) {
    let graph = &mut model.graph;
    let is_lifted = |output: Option<&String>| output.is_some_and(|name| trained.contains(name));
    let mut lifted = Vec::new();
    graph.nodes.retain(|node| match (node.constant(), node.outputs.first()) {
        (Some(tensor), name) if is_lifted(name) => {
            lifted.push((node.outputs[0].clone(), tensor.clone()));
            false
        }
        _ => true,
    });
    lifted.into_iter().for_each(|(name, tensor)| graph.set_initializer(name, tensor));
}

/// Applies a plan that is made with the trained initializers as inputs of the graph.
fn around_trained(
    model: &mut Model,
    trained: &HashSet<String>,
    plan: impl Fn(&Model) -> Plan,
) -> Result<(), GraphError> {
    let stored: Vec<_> = (model.graph.initializers.iter())
        .filter(|(name, _)| trained.contains(*name))
        .map(|(name, stored)| (name.clone(), stored.clone()))
        .collect();
    let inputs = model.graph.inputs.clone();
    for (name, stored) in &stored {
        model.graph.initializers.shift_remove(name);
        let shape = stored.tensor.shape().iter().map(|&size| size.into()).collect();
        model.graph.inputs.retain(|input| input.name != *name);
        model.graph.inputs.push(Value::tensor(name, stored.tensor.dtype(), shape));
    }
    let plan = plan(model);
    apply(&mut model.graph, &plan)?;
    model.graph.inputs = inputs;
    stored.into_iter().for_each(|(name, stored)| {
        model.graph.initializers.insert(name, stored);
    });
    Ok(())
}
