//! The weights that can be pruned.

use std::collections::BTreeSet;

use attar_graph::{Graph, Model};
use attar_tensor::{DType, Tensor};

use crate::layout::{Matrix, reading, readings};
use crate::{Context, PassError};

/// Names of the f32 tensors that products, convolutions and recurrent layers multiply with, in
/// file order.
///
/// # Errors
/// A weight that is not finite.
pub(crate) fn prunable(model: &Model, context: &Context) -> Result<Vec<String>, PassError> {
    let graph = &model.graph;
    let mut names = BTreeSet::new();
    for node in graph.nodes.iter().filter(|node| !context.exclude.matches(node.label())) {
        for (input, name) in node.inputs.iter().enumerate().take(3) {
            let rank = graph.constant(name).map_or(0, Tensor::rank);
            if rank >= 2 && reading(node, input, rank).is_some() {
                names.insert(name.as_str());
            }
        }
    }
    let mut found = Vec::new();
    for (name, tensor) in graph.constants() {
        let is_weight = names.contains(name) && tensor.dtype() == DType::F32;
        if !is_weight || tensor.element_count() == 0 || context.exclude.matches(name) {
            continue;
        }
        if tensor.values::<f32>().iter().any(|w| !w.is_finite()) {
            return Err(PassError::WeightNotFinite { tensor: name.into() });
        }
        found.push(name.to_string());
    }
    Ok(found)
}

/// The matrices that the weight `name` consists of, where all its readers agree on them.
pub(crate) fn matrices(graph: &Graph, name: &str) -> Option<Vec<Matrix>> {
    let layout = readings(graph, name)?[0].layout;
    Some(layout.matrices(graph.constant(name)?.shape()))
}
