//! What a well-formed graph is: every value produced once, before it is read.

use std::collections::{HashMap, HashSet};

use crate::links::for_each_name_read;
use crate::{Graph, GraphError, Node};

/// Depth of nested subgraphs beyond which a model is refused.
const DEPTH_MAX: usize = 64;

/// Checks that values are produced once and before they are read, in subgraphs too.
///
/// # Errors
/// The first violation, naming node and value.
pub fn validate(graph: &Graph) -> Result<(), GraphError> {
    validate_within(graph, &HashSet::new(), 0)
}

fn validate_within(graph: &Graph, outer: &HashSet<&str>, depth: usize) -> Result<(), GraphError> {
    let mut known: HashSet<&str> = outer.clone();
    known.extend(graph.initializers.keys().map(String::as_str));
    known.extend(graph.inputs.iter().map(|input| input.name.as_str()));
    for node in &graph.nodes {
        for value in node.inputs.iter().filter(|name| !name.is_empty()) {
            if !known.contains(value.as_str()) {
                return Err(dangling(node, value));
            }
        }
        if node.subgraphs().next().is_some() && depth == DEPTH_MAX {
            return Err(GraphError::TooDeep { node: node.label().into(), limit: DEPTH_MAX });
        }
        for subgraph in node.subgraphs() {
            validate_within(subgraph, &known, depth + 1)?;
        }
        for value in node.outputs.iter().filter(|name| !name.is_empty()) {
            if !known.insert(value) {
                let node = node.label().into();
                return Err(GraphError::Redefined { value: value.clone(), node });
            }
        }
    }
    match graph.outputs.iter().find(|output| !known.contains(output.name.as_str())) {
        Some(output) => Err(GraphError::MissingOutput { value: output.name.clone() }),
        None => Ok(()),
    }
}

fn dangling(node: &Node, value: &str) -> GraphError {
    GraphError::Dangling {
        node: node.label().into(),
        op_type: node.op_type.clone(),
        value: value.into(),
    }
}

/// Orders nodes so that each follows those it reads from, changing the order as little as
/// possible: of the nodes that can come next, the one that stood first does.
///
/// # Errors
/// [`GraphError::Cycle`] naming one node of the cycle.
pub fn sort_nodes(graph: &mut Graph) -> Result<(), GraphError> {
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        producer.extend(node.outputs.iter().map(|name| (name.as_str(), index)));
    }
    let mut waiting = vec![0_usize; graph.nodes.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        let mut wait_for = |name: &str| {
            if let Some(&from) = producer.get(name).filter(|&&from| from != index) {
                waiting[index] += 1;
                readers[from].push(index);
            }
        };
        node.inputs.iter().for_each(|name| wait_for(name));
        node.subgraphs().for_each(|subgraph| for_each_name_read(subgraph, &mut wait_for));
    }
    let mut ready: std::collections::BTreeSet<usize> =
        (0..waiting.len()).filter(|&index| waiting[index] == 0).collect();
    let mut order = Vec::with_capacity(waiting.len());
    while let Some(index) = ready.pop_first() {
        order.push(index);
        for &reader in &readers[index] {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.insert(reader);
            }
        }
    }
    if let Some(stuck) = waiting.iter().position(|&count| count > 0) {
        let node = &graph.nodes[stuck];
        let (node, op_type) = (node.label().into(), node.op_type.clone());
        return Err(GraphError::Cycle { node, op_type });
    }
    let mut nodes: Vec<Option<Node>> =
        std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
    graph.nodes = order.into_iter().filter_map(|index| nodes[index].take()).collect();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::graph_from_text;

    #[test]
    fn a_node_may_not_read_what_comes_later() {
        let mut graph = graph_from_text("a = Relu(x)\ny = Relu(a)");
        graph.nodes.swap(0, 1);
        let error = validate(&graph).unwrap_err();
        assert_eq!(error.to_string(), "node `y` (Relu) reads `a`, which nothing produces");
        sort_nodes(&mut graph).unwrap();
        validate(&graph).unwrap();
    }

    #[test]
    fn a_cycle_is_named() {
        let mut graph = graph_from_text("a = Relu(x)\ny = Relu(a)");
        graph.nodes[0].inputs[0] = "y".into();
        let error = sort_nodes(&mut graph).unwrap_err();
        assert_eq!(error.to_string(), "node `a` (Relu) takes part in a cycle");
    }
}
