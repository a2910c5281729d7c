//! The graph that a tape runs: only what leads to the loss, groups of nodes fused.

use std::collections::HashSet;

use attar_graph::{Model, apply};
use attar_ops::fuse::{dead_nodes, for_training};
use attar_ops::opset::OpsetError;

use super::{TapeOptions, widen_half};
use crate::TrainError;

pub(super) struct Prepared {
    pub(super) model: Model,
    /// In the caller's order.
    pub(super) trained: Vec<String>,
}

pub(super) fn prepare(
    model: &Model,
    trained: &[String],
    options: &TapeOptions,
) -> Result<Prepared, TrainError> {
    let mut model = model.clone();
    widen_half(&mut model);
    keep_outputs(&mut model, &options.outputs)?;
    for name in trained {
        if model.graph.constant(name).is_none() {
            return Err(TrainError::NoInitializer { name: name.clone() });
        }
    }
    let names: HashSet<String> = trained.iter().cloned().collect();
    let plan = dead_nodes::plan(&model);
    apply(&mut model.graph, &plan)?;
    let model = for_training(&model, &names, !options.unfused).map_err(|error| match error {
        OpsetError::Node { node, op_type, source } => {
            TrainError::Node { node, op_type, source: Box::new(source) }
        }
        OpsetError::Graph(error) => TrainError::Graph(error),
        OpsetError::Range { .. } => unreachable!("nothing was asked to be of another opset"),
    })?;
    let trained = trained.iter().filter(|name| model.graph.initializers.contains_key(*name));
    Ok(Prepared { trained: trained.cloned().collect(), model })
}

fn keep_outputs(model: &mut Model, outputs: &[String]) -> Result<(), TrainError> {
    let graph = &mut model.graph;
    if outputs.is_empty() {
        return Ok(());
    }
    let mut kept = Vec::new();
    for name in outputs {
        let Some(output) = graph.outputs.iter().find(|output| output.name == *name) else {
            let known: Vec<&str> = graph.outputs.iter().map(|o| o.name.as_str()).collect();
            return Err(TrainError::NoOutput { name: name.clone(), outputs: known.join(", ") });
        };
        kept.push(output.clone());
    }
    graph.outputs = kept;
    Ok(())
}
