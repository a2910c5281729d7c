//! Visiting every tensor of a model's messages, wherever it stands.

use crate::messages::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

/// What a walk calls; an error ends it.
pub(crate) type Visit<'a, E> = &'a mut dyn FnMut(&mut TensorProto) -> Result<(), E>;

/// Visits initializers, attributes, and sparse tensors' parts, in subgraphs, functions and
/// training information too.
pub(crate) fn for_each_tensor<E>(model: &mut ModelProto, visit: Visit<'_, E>) -> Result<(), E> {
    let training = model.training_info.iter_mut();
    let training =
        training.flat_map(|info| info.initialization.iter_mut().chain(&mut info.algorithm));
    for graph in model.graph.iter_mut().chain(training) {
        in_graph(graph, visit)?;
    }
    for function in &mut model.functions {
        in_attributes(&mut function.attribute_proto, visit)?;
        in_nodes(&mut function.node, visit)?;
    }
    Ok(())
}

fn in_graph<E>(graph: &mut GraphProto, visit: Visit<'_, E>) -> Result<(), E> {
    for tensor in &mut graph.initializer {
        visit(tensor)?;
    }
    for sparse in &mut graph.sparse_initializer {
        sparse.values.iter_mut().chain(&mut sparse.indices).try_for_each(&mut *visit)?;
    }
    in_nodes(&mut graph.node, visit)
}

fn in_nodes<E>(nodes: &mut [NodeProto], visit: Visit<'_, E>) -> Result<(), E> {
    nodes.iter_mut().try_for_each(|node| in_attributes(&mut node.attribute, visit))
}

fn in_attributes<E>(attributes: &mut [AttributeProto], visit: Visit<'_, E>) -> Result<(), E> {
    for attribute in attributes {
        attribute.t.iter_mut().chain(&mut attribute.tensors).try_for_each(&mut *visit)?;
        for sparse in attribute.sparse_tensor.iter_mut().chain(&mut attribute.sparse_tensors) {
            sparse.values.iter_mut().chain(&mut sparse.indices).try_for_each(&mut *visit)?;
        }
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            in_graph(graph, visit)?;
        }
    }
    Ok(())
}

/// Visits the graph and its subgraphs, and those of functions, outer ones first.
pub(crate) fn for_each_graph<E>(
    model: &ModelProto,
    visit: &mut dyn FnMut(&GraphProto) -> Result<(), E>,
) -> Result<(), E> {
    let mut open: Vec<&GraphProto> = model.graph.iter().collect();
    open.extend(model.functions.iter().flat_map(|function| &function.node).flat_map(subgraphs));
    while let Some(graph) = open.pop() {
        visit(graph)?;
        open.extend(graph.node.iter().flat_map(subgraphs));
    }
    Ok(())
}

fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}
