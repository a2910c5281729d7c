//! Functions put in the place of the nodes that call them.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;

use crate::{
    Attribute, AttributeValue, Edit, Function, Graph, GraphError, Model, Node, StoredTensor,
    all_names,
};

/// Calls inside functions nested deeper than this are refused, and so is recursion.
const DEPTH_MAX: usize = 64;

/// Nodes that inlining may make at most: calls multiply with every level.
const NODES_MAX: usize = 1 << 20;

/// Replaces every call of a function of the model by the function's nodes, and drops the
/// functions. Values inside a function are named after the calling node.
///
/// # Errors
/// [`GraphError::FunctionCall`] for a recursive call, one with more inputs or outputs than the
/// function has, or one of a function made for another operator set.
pub fn inline_functions(model: &mut Model) -> Result<(), GraphError> {
    if model.functions.is_empty() {
        return Ok(());
    }
    let functions: HashMap<(&str, &str, &str), &Function> = (model.functions.iter())
        .map(|f| ((f.domain.as_str(), f.name.as_str(), f.overload.as_str()), f))
        .collect();
    let names = all_names(&model.graph);
    let mut inliner = Inliner { model, functions, names, node_count: 0 };
    let graph = inliner.graph(&model.graph, 0)?;
    model.graph = graph;
    model.functions.clear();
    Ok(())
}

/// The edits that put a branch in the place of the node that would run it, `index` of the graph.
/// Values inside are named after that node, and the names taken go into `names`.
pub fn inline_branch<S: BuildHasher>(
    graph: &Graph,
    index: usize,
    branch: &Graph,
    names: &mut HashSet<String, S>,
) -> Vec<Edit> {
    let mut node = graph.nodes[index].clone();
    let constant = |(name, stored): (&String, &StoredTensor)| {
        let value = AttributeValue::from(stored.tensor.clone());
        Node::new("Constant", name, &[], &[name]).with_attribute("value", value)
    };
    let nodes: Vec<Node> =
        branch.initializers.iter().map(constant).chain(branch.nodes.iter().cloned()).collect();
    let made: HashSet<&String> = nodes.iter().flat_map(|node| &node.outputs).collect();
    // An output that the branch only hands on, or gives twice, is a copy.
    let (mut given, mut copied) = (Vec::new(), Vec::new());
    for (inner, outer) in branch.outputs.iter().map(|output| &output.name).zip(&node.outputs) {
        let is_own = made.contains(inner) && given.iter().all(|(known, _)| known != inner);
        let list = if is_own { &mut given } else { &mut copied };
        if !outer.is_empty() {
            list.push((inner.clone(), outer.clone()));
        }
    }
    node.inputs.clear();
    let (inner, outer): (Vec<String>, Vec<String>) = given.into_iter().unzip();
    node.outputs = outer;
    let function = Function { outputs: inner, nodes: nodes.clone(), ..Function::default() };
    let call = Call::new(&node, &function, names);
    let mut edits = vec![Edit::RemoveNode { index }];
    edits.extend(nodes.iter().map(|node| Edit::AddNode { node: call.node(node) }));
    edits.extend(copied.iter().map(|(inner, outer)| Edit::AddNode {
        node: Node::new("Identity", outer, &[&call.name(inner)], &[outer]),
    }));
    edits
}

struct Inliner<'a> {
    model: &'a Model,
    functions: HashMap<(&'a str, &'a str, &'a str), &'a Function>,
    /// Names in use.
    names: HashSet<String>,
    node_count: usize,
}

impl Inliner<'_> {
    fn graph(&mut self, graph: &Graph, depth: usize) -> Result<Graph, GraphError> {
        let mut nodes = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            self.node(node.clone(), depth, &mut nodes)?;
        }
        Ok(Graph { nodes, ..graph.clone() })
    }

    fn node(
        &mut self,
        mut node: Node,
        depth: usize,
        into: &mut Vec<Node>,
    ) -> Result<(), GraphError> {
        let key = (node.domain.as_str(), node.op_type.as_str(), node.overload.as_str());
        let found = self.functions.get(&key).copied();
        self.node_count += 1;
        let refuse = |reason: &str| GraphError::FunctionCall {
            node: node.label().into(),
            function: node.op_type.clone(),
            reason: reason.into(),
        };
        if depth > DEPTH_MAX || self.node_count > NODES_MAX {
            return Err(refuse("calls that are nested too deep, or call themselves"));
        }
        let Some(function) = found else {
            for body in node.subgraphs_mut() {
                *body = self.graph(body, depth + 1)?;
            }
            into.push(node);
            return Ok(());
        };
        if node.inputs.len() > function.inputs.len() || node.outputs.len() > function.outputs.len()
        {
            return Err(refuse("more inputs or outputs than the function has"));
        }
        for (domain, version) in &function.opsets {
            let of_model = self.model.opsets.get(domain);
            if of_model.is_some_and(|of_model| of_model != version) {
                return Err(refuse("an operator set of another version than the model's"));
            }
        }
        let call = Call::new(&node, function, &mut self.names);
        let mut outer = Vec::with_capacity(function.nodes.len());
        for inner in &function.nodes {
            outer.push(call.node(inner));
        }
        for node in outer {
            self.node(node, depth + 1, into)?;
        }
        Ok(())
    }
}

/// One call: what each name inside the function is called outside.
struct Call<'a> {
    node: &'a Node,
    function: &'a Function,
    renamed: HashMap<&'a str, String>,
}

impl<'a> Call<'a> {
    fn new<S: BuildHasher>(
        node: &'a Node,
        function: &'a Function,
        names: &mut HashSet<String, S>,
    ) -> Self {
        let mut renamed: HashMap<&str, String> = HashMap::new();
        for (index, name) in function.inputs.iter().enumerate() {
            renamed.insert(name, node.inputs.get(index).cloned().unwrap_or_default());
        }
        for (index, name) in function.outputs.iter().enumerate() {
            if let Some(outer) = node.outputs.get(index).filter(|outer| !outer.is_empty()) {
                renamed.insert(name, outer.clone());
            }
        }
        let mut inner: Vec<&str> = Vec::new();
        let mut open: Vec<&[Node]> = vec![&function.nodes];
        while let Some(nodes) = open.pop() {
            for node in nodes {
                inner.extend(node.outputs.iter().map(String::as_str));
                for body in node.subgraphs() {
                    inner.extend(body.inputs.iter().map(|input| input.name.as_str()));
                    inner.extend(body.initializers.keys().map(String::as_str));
                    open.push(&body.nodes);
                }
            }
        }
        for name in inner.into_iter().filter(|name| !name.is_empty()) {
            if renamed.contains_key(name) {
                continue;
            }
            let mut outer = format!("{}/{name}", node.label());
            while !names.insert(outer.clone()) {
                outer.push('\'');
            }
            renamed.insert(name, outer);
        }
        Self { node, function, renamed }
    }

    fn name(&self, inner: &str) -> String {
        self.renamed.get(inner).cloned().unwrap_or_else(|| inner.to_string())
    }

    fn node(&self, inner: &Node) -> Node {
        let mut node = inner.clone();
        if !node.name.is_empty() {
            node.name = format!("{}/{}", self.node.label(), node.name);
        }
        node.inputs.iter_mut().for_each(|name| *name = self.name(name));
        node.outputs.iter_mut().for_each(|name| *name = self.name(name));
        node.attributes = (inner.attributes.iter())
            .filter_map(|(name, attribute)| Some((name.clone(), self.attribute(attribute)?)))
            .collect();
        node
    }

    /// The attribute with references resolved; `None` where the call leaves one out.
    fn attribute(&self, attribute: &Attribute) -> Option<Attribute> {
        if let AttributeValue::Reference(name) = &attribute.value {
            let given = self.node.attributes.get(name);
            return given.or_else(|| self.function.attribute_defaults.get(name)).cloned();
        }
        let mut attribute = attribute.clone();
        match &mut attribute.value {
            AttributeValue::Graph(graph) => **graph = self.graph(graph),
            AttributeValue::Graphs(graphs) => {
                graphs.iter_mut().for_each(|graph| *graph = self.graph(graph));
            }
            _ => {}
        }
        Some(attribute)
    }

    fn graph(&self, graph: &Graph) -> Graph {
        let mut graph = graph.clone();
        graph.nodes = graph.nodes.iter().map(|node| self.node(node)).collect();
        let ends = graph.inputs.iter_mut().chain(&mut graph.outputs).chain(&mut graph.values);
        ends.for_each(|value| value.name = self.name(&value.name));
        graph.initializers = std::mem::take(&mut graph.initializers)
            .into_iter()
            .map(|(name, stored)| (self.name(&name), stored))
            .collect();
        graph
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::graph_from_text;

    fn function(name: &str, text: &str, inputs: &[&str], outputs: &[&str]) -> Function {
        Function {
            name: name.into(),
            domain: "own".into(),
            inputs: inputs.iter().map(|&name| name.into()).collect(),
            outputs: outputs.iter().map(|&name| name.into()).collect(),
            nodes: graph_from_text(text).nodes,
            ..Function::default()
        }
    }

    fn calling(functions: Vec<Function>) -> Model {
        let mut graph = graph_from_text("y = Twice(x)\nz = Twice(y)");
        graph.nodes.iter_mut().for_each(|node| node.domain = "own".into());
        Model { functions, graph, ..Model::default() }
    }

    #[test]
    fn each_call_gets_names_of_its_own() {
        let mut model =
            calling(vec![function("Twice", "h = Neg(a)\nb = Add(h, a)", &["a"], &["b"])]);
        inline_functions(&mut model).unwrap();
        let nodes: Vec<String> = (model.graph.nodes.iter())
            .map(|node| {
                format!("{} = {}({})", node.outputs[0], node.op_type, node.inputs.join(", "))
            })
            .collect();
        assert_eq!(nodes, ["y/h = Neg(x)", "y = Add(y/h, x)", "z/h = Neg(y)", "z = Add(z/h, y)"]);
        crate::validate(&model.graph).unwrap();
    }

    #[test]
    fn a_function_that_calls_itself_is_refused() {
        let mut twice = function("Twice", "b = Twice(a)", &["a"], &["b"]);
        twice.nodes[0].domain = "own".into();
        let mut model = calling(vec![twice]);
        let error = inline_functions(&mut model).unwrap_err().to_string();
        assert!(error.contains("nested too deep"), "{error}");
    }
}
