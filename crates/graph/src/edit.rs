//! Edits, plans, and the one function that changes a graph.

use std::collections::HashSet;
use std::fmt;

use attar_tensor::Tensor;

use crate::links::for_each_name_read;
use crate::{AttributeValue, Graph, GraphError, Node, Value, ValueType, sort_nodes, validate};

/// One change. Nodes are named by their index in the graph that the plan was made for.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Sets a constant: an initializer, or the value of the `Constant` node that has this output.
    SetInitializer {
        name: String,
        tensor: Tensor,
    },
    /// Removes an initializer, and the graph input of that name if there is one.
    RemoveInitializer {
        name: String,
    },
    /// Removes a graph input that nothing reads any more.
    RemoveInput {
        name: String,
    },
    /// Adds a node; `apply` finds its place.
    AddNode {
        node: Node,
    },
    RemoveNode {
        index: usize,
    },
    /// Puts another node in the place of one.
    ReplaceNode {
        index: usize,
        node: Node,
    },
    /// Makes input `input` of a node read `value`.
    SetInput {
        index: usize,
        input: usize,
        value: String,
    },
    /// Declares the type of a graph output anew.
    SetOutput {
        value: Value,
    },
    /// Declares the type of a graph input anew; types recorded of other values no longer hold.
    DeclareInput {
        value: Value,
    },
    /// Makes every reader of `from` read `to`, graph outputs excepted: their names are a contract.
    ReplaceUses {
        from: String,
        to: String,
    },
}

/// What a pass intends: edits, and remarks for the report.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub edits: Vec<Edit>,
    /// What was left alone and why, one sentence each.
    pub remarks: Vec<String>,
    /// What the user should know before the result is used.
    pub warnings: Vec<String>,
}

impl Plan {
    pub fn push(&mut self, edit: Edit) {
        self.edits.push(edit);
    }

    pub fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.edits.iter().try_for_each(|edit| writeln!(f, "{edit}"))
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetInitializer { name, tensor } => {
                write!(f, "set {name} {}{:?}", tensor.dtype(), tensor.shape())
            }
            Self::RemoveInitializer { name } => write!(f, "remove {name}"),
            Self::RemoveInput { name } => write!(f, "remove input {name}"),
            Self::AddNode { node } => write!(f, "add {}", describe(node)),
            Self::RemoveNode { index } => write!(f, "remove node {index}"),
            Self::ReplaceNode { index, node } => {
                write!(f, "replace node {index} by {}", describe(node))
            }
            Self::SetInput { index, input, value } => {
                write!(f, "node {index} input {input} reads {value}")
            }
            Self::SetOutput { value } => write!(f, "output {}{}", value.name, type_of(value)),
            Self::DeclareInput { value } => write!(f, "input {}{}", value.name, type_of(value)),
            Self::ReplaceUses { from, to } => write!(f, "readers of {from} read {to}"),
        }
    }
}

/// The type of a tensor as text, as far as it is known.
fn type_of(value: &Value) -> String {
    let Some(ValueType::Tensor { dtype, shape }) = &value.value_type else { return String::new() };
    let dtype = dtype.map_or(String::from("?"), |dtype| dtype.to_string());
    let sizes = |dims: &Vec<crate::Dim>| dims.iter().map(ToString::to_string).collect::<Vec<_>>();
    let shape =
        shape.as_ref().map_or(String::new(), |dims| format!("[{}]", sizes(dims).join(", ")));
    format!(" {dtype}{shape}")
}

fn describe(node: &Node) -> String {
    format!("{} = {}({})", node.outputs.join(", "), node.op_type, node.inputs.join(", "))
}

/// Carries out a plan: all edits or, on an error, none.
///
/// Nodes come out sorted. Initializers whose last reader went are removed with it; types recorded for values that no longer exist, or that an edit may have
/// changed, are dropped.
///
/// # Errors
/// When the graph before or after is not well formed, or an edit names what is not there.
pub fn apply(graph: &mut Graph, plan: &Plan) -> Result<(), GraphError> {
    validate(graph)?;
    if plan.is_empty() {
        return Ok(());
    }
    let mut edited = graph.clone();
    let mut removed: HashSet<usize> = HashSet::new();
    let mut added: Vec<Node> = Vec::new();
    for edit in &plan.edits {
        match edit {
            Edit::SetInitializer { name, tensor } => set_constant(&mut edited, name, tensor),
            Edit::RemoveInitializer { name } => {
                if edited.initializers.shift_remove(name).is_none() {
                    return Err(GraphError::NoSuchValue { value: name.clone() });
                }
                edited.inputs.retain(|input| input.name != *name);
            }
            Edit::RemoveInput { name } => {
                let count = edited.inputs.len();
                edited.inputs.retain(|input| input.name != *name);
                if edited.inputs.len() == count {
                    return Err(GraphError::NoSuchValue { value: name.clone() });
                }
            }
            Edit::AddNode { node } => added.push(node.clone()),
            Edit::RemoveNode { index } => {
                node_at(&mut edited, *index)?;
                removed.insert(*index);
            }
            Edit::ReplaceNode { index, node } => *node_at(&mut edited, *index)? = node.clone(),
            Edit::SetInput { index, input, value } => {
                let inputs = &mut node_at(&mut edited, *index)?.inputs;
                if inputs.len() <= *input {
                    inputs.resize(input + 1, String::new());
                }
                inputs[*input].clone_from(value);
            }
            Edit::SetOutput { value } => {
                let output = edited.outputs.iter_mut().find(|output| output.name == value.name);
                let missing = || GraphError::NoSuchValue { value: value.name.clone() };
                *output.ok_or_else(missing)? = value.clone();
            }
            Edit::DeclareInput { value } => {
                let input = edited.inputs.iter_mut().find(|input| input.name == value.name);
                let missing = || GraphError::NoSuchValue { value: value.name.clone() };
                *input.ok_or_else(missing)? = value.clone();
                edited.values.clear();
            }
            Edit::ReplaceUses { from, to } => {
                replace_uses(&mut edited, from, to);
                added.iter_mut().for_each(|node| replace_in_node(node, from, to));
            }
        }
    }
    let mut index = 0;
    edited.nodes.retain(|_| {
        index += 1;
        !removed.contains(&(index - 1))
    });
    edited.nodes.extend(added);
    drop_orphans(graph, &mut edited);
    sort_nodes(&mut edited)?;
    drop_stale_types(graph, &mut edited);
    drop_resized_types(graph, plan, &mut edited);
    validate(&edited)?;
    *graph = edited;
    Ok(())
}

fn node_at(graph: &mut Graph, index: usize) -> Result<&mut Node, GraphError> {
    let count = graph.nodes.len();
    graph.nodes.get_mut(index).ok_or(GraphError::NoSuchNode { index, count })
}

fn set_constant(graph: &mut Graph, name: &str, tensor: &Tensor) {
    let is_source = |node: &&mut Node| node.is("Constant") && node.outputs[0] == name;
    if let Some(stored) = graph.initializers.get_mut(name) {
        stored.tensor = tensor.clone();
    } else if let Some(node) = graph.nodes.iter_mut().find(is_source) {
        node.attributes.clear();
        node.attributes.insert("value".into(), AttributeValue::from(tensor.clone()).into());
    } else {
        graph.set_initializer(name, tensor.clone());
    }
}

fn replace_uses(graph: &mut Graph, from: &str, to: &str) {
    graph.nodes.iter_mut().for_each(|node| replace_in_node(node, from, to));
}

fn replace_in_node(node: &mut Node, from: &str, to: &str) {
    node.inputs.iter_mut().filter(|name| *name == from).for_each(|name| *name = to.into());
    for subgraph in node.subgraphs_mut() {
        replace_uses(subgraph, from, to);
    }
}

/// Removes initializers that something read before and nothing reads now.
fn drop_orphans(before: &Graph, after: &mut Graph) {
    let names = |graph: &Graph| -> HashSet<String> {
        let mut names = HashSet::new();
        for_each_name_read(graph, &mut |name| {
            names.insert(name.to_string());
        });
        names
    };
    let (read_before, read_after) = (names(before), names(after));
    let is_orphan = |name: &String| read_before.contains(name) && !read_after.contains(name);
    after
        .inputs
        .retain(|input| !(after.initializers.contains_key(&input.name) && is_orphan(&input.name)));
    after.initializers.retain(|name, _| !is_orphan(name));
}

/// Keeps a recorded type only where the value is still produced by the same node as before.
fn drop_stale_types(before: &Graph, after: &mut Graph) {
    let old: std::collections::HashMap<&str, &Node> =
        before.nodes.iter().flat_map(|n| n.outputs.iter().map(move |o| (o.as_str(), n))).collect();
    let mut kept: HashSet<String> = HashSet::new();
    for node in &after.nodes {
        for output in &node.outputs {
            if old.get(output.as_str()).is_some_and(|old| old.op_type == node.op_type) {
                kept.insert(output.clone());
            }
        }
    }
    after.values.retain(|value| kept.contains(&value.name));
}

/// Drops the recorded types of all that follows from a constant of another shape, or from a node
/// put in the place of one: sizes may have changed.
fn drop_resized_types(before: &Graph, plan: &Plan, after: &mut Graph) {
    if after.values.is_empty() {
        return;
    }
    let mut resized: HashSet<&str> = HashSet::new();
    for edit in &plan.edits {
        match edit {
            Edit::SetInitializer { name, tensor } => {
                let is_resized = |old: &Tensor| old.shape() != tensor.shape();
                if before.constant(name).is_some_and(is_resized) {
                    resized.insert(name);
                }
            }
            Edit::ReplaceNode { node, .. } => {
                resized.extend(node.outputs.iter().map(String::as_str));
            }
            _ => {}
        }
    }
    for node in &after.nodes {
        let mut is_resized = node.inputs.iter().any(|name| resized.contains(name.as_str()));
        for subgraph in node.subgraphs() {
            for_each_name_read(subgraph, &mut |name| is_resized |= resized.contains(name));
        }
        if is_resized {
            resized.extend(node.outputs.iter().map(String::as_str));
        }
    }
    after.values.retain(|value| !resized.contains(value.name.as_str()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::graph_from_text;

    #[test]
    fn an_edit_that_breaks_the_graph_changes_nothing() {
        let mut graph = graph_from_text("a = Relu(x)\ny = Relu(a)");
        let before = graph.clone();
        let mut plan = Plan::default();
        plan.push(Edit::RemoveNode { index: 0 });
        let error = apply(&mut graph, &plan).unwrap_err();
        assert_eq!(error.to_string(), "node `y` (Relu) reads `a`, which nothing produces");
        assert_eq!(graph, before);
    }

    #[test]
    fn a_constant_that_loses_its_last_reader_goes() {
        let mut graph = graph_from_text("w = [1 2]\nv = [3 4]\na = Add(x, w)\ny = Add(a, v)");
        let mut plan = Plan::default();
        plan.push(Edit::SetInput { index: 1, input: 1, value: "w".into() });
        apply(&mut graph, &plan).unwrap();
        let names: Vec<&String> = graph.initializers.keys().collect();
        assert_eq!(names, ["w"]);
    }

    #[test]
    fn types_recorded_behind_a_resized_constant_go() {
        let mut graph = graph_from_text("w = [1 2]\na = Relu(x)\nb = Mul(a, w)\ny = Abs(b)");
        for name in ["a", "b"] {
            graph.values.push(crate::Value::tensor(name, attar_tensor::DType::F32, vec![2.into()]));
        }
        let mut plan = Plan::default();
        plan.push(Edit::SetInitializer { name: "w".into(), tensor: Tensor::new(&[1], &[1.0_f32]) });
        apply(&mut graph, &plan).unwrap();
        let names: Vec<&str> = graph.values.iter().map(|value| value.name.as_str()).collect();
        assert_eq!(names, ["a"]);
    }

    #[test]
    fn an_added_node_finds_its_place() {
        let mut graph = graph_from_text("a = Relu(x)\ny = Relu(a)");
        let mut plan = Plan::default();
        plan.push(Edit::AddNode { node: Node::new("Abs", "abs", &["a"], &["b"]) });
        plan.push(Edit::SetInput { index: 1, input: 0, value: "b".into() });
        apply(&mut graph, &plan).unwrap();
        let order: Vec<&str> = graph.nodes.iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(order, ["Relu", "Abs", "Relu"]);
        assert_eq!(plan.to_string(), "add b = Abs(a)\nnode 1 input 0 reads b\n");
    }

    #[test]
    fn an_output_is_declared_anew() {
        let mut graph = graph_from_text("y = Relu(x)");
        let value = |name| {
            Value::tensor(name, attar_tensor::DType::F32, vec![crate::Dim::symbol("n"), 2.into()])
        };
        let mut plan = Plan::default();
        plan.push(Edit::SetOutput { value: value("y") });
        assert_eq!(plan.to_string(), "output y f32[n, 2]\n");
        apply(&mut graph, &plan).unwrap();
        assert_eq!(graph.outputs, [value("y")]);
        plan.push(Edit::SetOutput { value: value("z") });
        let error = apply(&mut graph, &plan).unwrap_err();
        assert_eq!(error.to_string(), "an edit names value `z`, which the graph does not have");
    }

    #[test]
    fn an_input_gets_another_type_and_others_are_found_anew() {
        let mut graph = graph_from_text("x: f32[n, 2]\nh = Neg(x)\ny = Relu(h)");
        let value = |name: &str| Value::tensor(name, attar_tensor::DType::F32, vec![3.into()]);
        graph.values.push(value("h"));
        let mut plan = Plan::default();
        plan.push(Edit::DeclareInput { value: value("x") });
        assert_eq!(plan.to_string(), "input x f32[3]\n");
        apply(&mut graph, &plan).unwrap();
        assert_eq!(graph.inputs, [value("x")]);
        assert!(graph.values.is_empty());
        plan.push(Edit::DeclareInput { value: value("y") });
        assert!(apply(&mut graph, &plan).is_err());
    }

    #[test]
    fn the_value_of_a_constant_node_is_set_in_place() {
        let mut graph = graph_from_text("y = Relu(x)");
        let value = AttributeValue::from(Tensor::scalar(1.0_f32));
        let node = Node::new("Constant", "c", &[], &["w"]).with_attribute("value", value);
        graph.nodes.insert(0, node);
        let mut plan = Plan::default();
        plan.push(Edit::SetInitializer { name: "w".into(), tensor: Tensor::scalar(2.0_f32) });
        apply(&mut graph, &plan).unwrap();
        assert_eq!(graph.constant("w").unwrap().slice::<f32>(), [2.0]);
        assert!(graph.initializers.is_empty());
    }
}
