//! What a well-formed graph is: every value produced once, before it is read.

use std::collections::{HashMap, HashSet};

use crate::links::for_each_name_read;
use crate::{Function, Graph, GraphError, Node};

/// Depth of nested subgraphs beyond which a model is refused.
const DEPTH_MAX: usize = 64;

/// Checks that values are produced once and before they are read, in subgraphs too.
///
/// # Errors
/// The first violation, naming node and value.
pub fn validate(graph: &Graph) -> Result<(), GraphError> {
    Scope::default().check_graph(graph, 0)
}

/// As [`validate`], for the nodes of a function; it sees no values but its inputs.
///
/// # Errors
/// The first violation, naming node and value.
pub fn validate_function(function: &Function) -> Result<(), GraphError> {
    let mut scope = Scope::default();
    function.inputs.iter().try_for_each(|input| scope.define_input(input))?;
    scope.check_nodes(&function.nodes, 0)?;
    scope.check_outputs(function.outputs.iter().map(String::as_str))
}

/// The values known at one point, those of outer graphs among them.
#[derive(Default)]
struct Scope<'a> {
    known: HashSet<&'a str>,
    /// What `known` has, in the order it came: a subgraph's own values go when it ends.
    order: Vec<&'a str>,
}

impl<'a> Scope<'a> {
    /// Whether the value is new.
    fn define(&mut self, value: &'a str) -> bool {
        let is_new = self.known.insert(value);
        if is_new {
            self.order.push(value);
        }
        is_new
    }

    fn define_input(&mut self, input: &'a str) -> Result<(), GraphError> {
        if self.define(input) {
            Ok(())
        } else {
            Err(GraphError::DuplicateInput { value: input.into() })
        }
    }

    fn check_graph(&mut self, graph: &'a Graph, depth: usize) -> Result<(), GraphError> {
        let outer = self.order.len();
        let mut inputs = HashSet::with_capacity(graph.inputs.len());
        if let Some(input) = graph.inputs.iter().find(|input| !inputs.insert(&input.name)) {
            return Err(GraphError::DuplicateInput { value: input.name.clone() });
        }
        graph.inputs.iter().for_each(|input| _ = self.define(&input.name));
        graph.initializers.keys().for_each(|name| _ = self.define(name));
        self.check_nodes(&graph.nodes, depth)?;
        self.check_outputs(graph.outputs.iter().map(|output| output.name.as_str()))?;
        for value in self.order.drain(outer..) {
            self.known.remove(value);
        }
        Ok(())
    }

    fn check_nodes(&mut self, nodes: &'a [Node], depth: usize) -> Result<(), GraphError> {
        for (index, node) in nodes.iter().enumerate() {
            let mut inputs = node.inputs.iter().filter(|name| !name.is_empty());
            if let Some(value) = inputs.find(|value| !self.known.contains(value.as_str())) {
                return Err(unknown_value(node, value, &nodes[index..]));
            }
            if node.subgraphs().next().is_some() && depth == DEPTH_MAX {
                return Err(GraphError::TooDeep { node: node.label().into(), limit: DEPTH_MAX });
            }
            for subgraph in node.subgraphs() {
                self.check_graph(subgraph, depth + 1)?;
            }
            for value in node.outputs.iter().filter(|name| !name.is_empty()) {
                if !self.define(value) {
                    let node = node.label().into();
                    return Err(GraphError::Redefined { value: value.clone(), node });
                }
            }
        }
        Ok(())
    }

    fn check_outputs(&self, outputs: impl Iterator<Item = &'a str>) -> Result<(), GraphError> {
        match outputs.into_iter().find(|output| !self.known.contains(output)) {
            Some(output) => Err(GraphError::MissingOutput { value: output.into() }),
            None => Ok(()),
        }
    }
}

/// Why `node`, the first of `rest`, may not read `value`: nothing makes it, a later node does, or
/// one that waits for this node.
fn unknown_value(node: &Node, value: &str, rest: &[Node]) -> GraphError {
    let (name, op_type) = (node.label().to_string(), node.op_type.clone());
    let Some(producer) = rest.iter().find(|later| later.outputs.iter().any(|o| o == value)) else {
        return GraphError::Dangling { node: name, op_type, value: value.into() };
    };
    let mut graph = Graph { nodes: rest.to_vec(), ..Graph::default() };
    match sort_nodes(&mut graph) {
        Err(cycle) => cycle,
        Ok(()) => GraphError::Unsorted {
            node: name,
            op_type,
            value: value.into(),
            producer: producer.label().into(),
        },
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
        let made = node.outputs.iter().filter(|name| !name.is_empty());
        producer.extend(made.map(|name| (name.as_str(), index)));
    }
    let mut waiting = vec![0_usize; graph.nodes.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        let mut wait_for = |name: &str, is_inner: bool| {
            // An inner value may be called as the node's output; no input may.
            let from = producer.get(name).filter(|&&from| !(is_inner && from == index));
            if let Some(&from) = from {
                waiting[index] += 1;
                readers[from].push(index);
            }
        };
        node.inputs.iter().for_each(|name| wait_for(name, false));
        for subgraph in node.subgraphs() {
            for_each_name_read(subgraph, &mut |name| wait_for(name, true));
        }
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
        assert_eq!(
            error.to_string(),
            "node `y` (Relu) reads `a`, which only node `a` after it produces"
        );
        sort_nodes(&mut graph).unwrap();
        validate(&graph).unwrap();
    }

    #[test]
    fn a_cycle_is_named() {
        let mut graph = graph_from_text("a = Relu(x)\ny = Relu(a)");
        graph.nodes[0].inputs[0] = "y".into();
        let error = sort_nodes(&mut graph).unwrap_err();
        assert_eq!(error.to_string(), "node `a` (Relu) takes part in a cycle");
        assert_eq!(validate(&graph).unwrap_err(), error);
        graph.nodes[0].inputs[0] = "a".into();
        assert_eq!(validate(&graph).unwrap_err(), error);
    }

    #[test]
    fn names_that_stand_twice_are_named() {
        let mut graph = graph_from_text("a = Relu(x)\ny = Add(a, z)");
        graph.inputs[1].name = "x".into();
        let error = validate(&graph).unwrap_err();
        assert_eq!(error.to_string(), "graph input `x` is there twice");
        graph.inputs[1].name = "z".into();
        graph.nodes[1].outputs[0] = "a".into();
        let error = validate(&graph).unwrap_err();
        assert_eq!(error.to_string(), "value `a` is produced twice, the second time by node `y`");
    }

    /// A node with a subgraph that reads `x` and makes `inner`.
    fn with_body(output: &str) -> Node {
        let mut body = graph_from_text("inner = Relu(x)");
        body.inputs.clear();
        Node::new("If", "", &["x"], &[output]).with_attribute("then_branch", body)
    }

    #[test]
    fn what_a_subgraph_makes_is_seen_by_no_one_else() {
        let mut graph = graph_from_text("y = Relu(b)");
        graph.inputs[0].name = "x".into();
        graph.nodes = vec![with_body("a"), with_body("b"), graph.nodes[0].clone()];
        validate(&graph).unwrap();
        graph.nodes[2].inputs[0] = "inner".into();
        let error = validate(&graph).unwrap_err();
        assert_eq!(error.to_string(), "node `y` (Relu) reads `inner`, which nothing produces");
    }

    #[test]
    fn a_hundred_thousand_nodes_with_bodies_take_no_long_time() {
        let count = 100_000;
        let mut graph = graph_from_text("y = Relu(x)");
        graph.nodes = (0..count).map(|index| with_body(&format!("v{index}"))).collect();
        graph.outputs[0].name = format!("v{}", count - 1);
        let start = std::time::Instant::now();
        validate(&graph).unwrap();
        sort_nodes(&mut graph).unwrap();
        // Unoptimized and in company a few seconds; what is quadratic takes minutes.
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }

    #[test]
    fn a_function_sees_its_inputs_only() {
        let mut function = Function {
            inputs: vec!["x".into()],
            outputs: vec!["y".into()],
            nodes: vec![Node::new("Relu", "", &["x"], &["y"])],
            ..Function::default()
        };
        validate_function(&function).unwrap();
        function.nodes[0].inputs[0] = "w".into();
        assert!(matches!(validate_function(&function), Err(GraphError::Dangling { .. })));
    }
}
