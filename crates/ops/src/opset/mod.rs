//! Opset conversion: nodes rewritten so that they mean in a newer operator set what they meant in
//! their own.
//!
//! A conversion is a translation of the whole model, bodies included, not an edit of it: nodes
//! keep their order and every value keeps its name.

mod conversions;

use std::collections::HashSet;

use attar_graph::{
    Attribute, AttributeValue, Graph, GraphError, Model, Node, all_names, inline_functions,
    validate,
};
use attar_tensor::Tensor;
use indexmap::IndexMap;

use crate::graph_facts::lenient_facts;
use crate::{Facts, OpError, Operator, operator};

/// The newest operator set that attar converts to.
pub const NEWEST_OPSET: i64 = 28;

/// The oldest operator set that attar converts from.
pub const OLDEST_OPSET: i64 = 6;

/// What a node meant before a version, said in that version's terms. The node's outputs keep
/// their names.
pub(crate) struct Conversion {
    pub(crate) op_type: &'static str,
    /// The first operator set in which the old node means something else, or nothing.
    pub(crate) version: i64,
    pub(crate) convert: fn(&mut Converted, Node) -> Result<(), OpError>,
}

/// Why a model cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum OpsetError {
    #[error("{op_type} (node `{node}`) {source}")]
    Node { node: String, op_type: String, source: OpError },

    #[error(
        "the model is of opset {found}; attar converts from {OLDEST_OPSET} to {NEWEST_OPSET}, and only upward, not to {target}"
    )]
    Range { found: i64, target: i64 },

    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl OpsetError {
    /// The user's next step.
    pub fn hint(&self) -> String {
        match self {
            Self::Range { found, .. } if *found < OLDEST_OPSET => {
                format!("export the model for opset {OLDEST_OPSET} or later")
            }
            Self::Range { found, .. } => {
                format!("give `--opset` a number from {found} to {NEWEST_OPSET}")
            }
            Self::Node { .. } => "leave `--opset` out, or export the model for it".into(),
            Self::Graph(_) => "check the model: `attar inspect MODEL`".into(),
        }
    }
}

/// Converts a model to a newer operator set. Functions are inlined first, since their nodes count
/// as well.
///
/// # Errors
/// [`OpsetError::Range`], or [`OpsetError::Node`] for a node without a counterpart there.
pub fn convert_opset(model: &mut Model, target: i64) -> Result<(), OpsetError> {
    let found = model.opset();
    if target == found {
        return Ok(());
    }
    if !(OLDEST_OPSET..=target).contains(&found) || target > NEWEST_OPSET {
        return Err(OpsetError::Range { found, target });
    }
    inline_functions(model)?;
    let facts = lenient_facts(model);
    let names = all_names(&model.graph);
    let mut pass = Pass { facts: &facts, names, from: found, to: target, only_needed: false };
    model.graph = pass.graph(&model.graph)?;
    model.opsets.insert(String::new(), target);
    model.ir_version = model.ir_version.max(ir_version_of(target));
    validate(&model.graph)?;
    Ok(())
}

/// The IR version that ONNX released with an operator set.
fn ir_version_of(opset: i64) -> i64 {
    match opset {
        ..=8 => 3,
        9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

/// Puts nodes whose operators are known only by a newer meaning into its terms, and leaves all
/// others as they are. What it makes is for running: the result may belong to no one operator set.
///
/// # Errors
/// [`OpsetError::Node`] for a node without a counterpart.
pub(crate) fn upgrade_for_running(model: &mut Model) -> Result<(), OpsetError> {
    let opset = model.opset();
    if !graph_needs(&model.graph, opset) {
        return Ok(());
    }
    let facts = lenient_facts(model);
    let names = all_names(&model.graph);
    let mut pass = Pass { facts: &facts, names, from: opset, to: NEWEST_OPSET, only_needed: true };
    model.graph = pass.graph(&model.graph)?;
    // What was converted asks for it, and what was not means the same in both.
    model.opsets.insert(String::new(), NEWEST_OPSET);
    Ok(())
}

pub(crate) fn graph_needs(graph: &Graph, opset: i64) -> bool {
    graph.nodes.iter().any(|node| {
        node_needs(node, opset) || node.subgraphs().any(|graph| graph_needs(graph, opset))
    })
}

/// Whether attar knows only a newer meaning of the node.
fn node_needs(node: &Node, opset: i64) -> bool {
    if !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return false;
    }
    match operator("", &node.op_type) {
        Some(operator) => opset < operator.since_opset(),
        None => conversions_of(node, opset, NEWEST_OPSET).next().is_some(),
    }
}

/// Whether attar has another way to say the node.
pub(crate) fn is_convertible(node: &Node, opset: i64) -> bool {
    matches!(node.domain.as_str(), "" | "ai.onnx")
        && conversions_of(node, opset, NEWEST_OPSET).next().is_some()
}

fn conversions_of(
    node: &Node,
    from: i64,
    to: i64,
) -> impl Iterator<Item = &'static Conversion> + use<'_> {
    let is_due = move |conversion: &&Conversion| {
        conversion.op_type == node.op_type && (from + 1..=to).contains(&conversion.version)
    };
    conversions::CONVERSIONS.iter().filter(is_due)
}

/// One conversion of a model.
struct Pass<'a> {
    facts: &'a Facts,
    /// Every name in use.
    names: HashSet<String>,
    from: i64,
    to: i64,
    /// Leave nodes alone that attar knows as they are.
    only_needed: bool,
}

impl Pass<'_> {
    fn graph(&mut self, graph: &Graph) -> Result<Graph, OpsetError> {
        let mut nodes = Vec::with_capacity(graph.nodes.len());
        let mut initializers = Vec::new();
        for node in &graph.nodes {
            let fail = |source| OpsetError::Node {
                node: node.label().into(),
                op_type: node.op_type.clone(),
                source,
            };
            let mut node = node.clone();
            for body in node.subgraphs_mut() {
                *body = self.graph(body)?;
            }
            let is_onnx = matches!(node.domain.as_str(), "" | "ai.onnx");
            if !is_onnx || (self.only_needed && !node_needs(&node, self.from)) {
                nodes.push(node);
                continue;
            }
            if node.inputs.is_empty() && conversions_of(&node, self.from, self.to).next().is_some()
            {
                return Err(fail(OpError::MissingInput { index: 0 }));
            }
            if self.only_needed && conversions_of(&node, self.from, self.to).next().is_none() {
                let since = operator("", &node.op_type).map_or(0, Operator::since_opset);
                return Err(fail(OpError::Opset { found: self.from, since }));
            }
            // Each conversion may leave a node that a later version changes again.
            let mut open = vec![(node, self.from)];
            while let Some((node, from)) = open.pop() {
                let first = conversions_of(&node, from, self.to).min_by_key(|c| c.version);
                let Some(conversion) = first else {
                    nodes.push(node);
                    continue;
                };
                let mut converted = Converted {
                    facts: self.facts,
                    names: &mut self.names,
                    nodes: Vec::new(),
                    initializers: Vec::new(),
                };
                (conversion.convert)(&mut converted, node).map_err(fail)?;
                initializers.append(&mut converted.initializers);
                let version = conversion.version;
                open.extend(converted.nodes.into_iter().rev().map(|node| (node, version)));
            }
        }
        let mut result = Graph { nodes, ..graph.clone() };
        for (name, tensor) in initializers {
            result.set_initializer(name, tensor);
        }
        Ok(result)
    }
}

/// What a conversion puts in the place of a node.
pub(crate) struct Converted<'a> {
    facts: &'a Facts,
    names: &'a mut HashSet<String>,
    nodes: Vec<Node>,
    initializers: Vec<(String, Tensor)>,
}

impl Converted<'_> {
    pub(crate) fn push(&mut self, node: Node) {
        self.nodes.push(node);
    }

    /// A name of no other value, called after the node it belongs to.
    pub(crate) fn name(&mut self, node: &Node, suffix: &str) -> String {
        let stem = node.outputs.iter().find(|name| !name.is_empty()).map_or("", String::as_str);
        let mut name = format!("{stem}/{suffix}");
        let mut count = 1;
        while !self.names.insert(name.clone()) {
            count += 1;
            name = format!("{stem}/{suffix}_{count}");
        }
        name
    }

    /// The name of a new constant.
    pub(crate) fn constant(&mut self, node: &Node, suffix: &str, tensor: Tensor) -> String {
        let name = self.name(node, suffix);
        self.initializers.push((name.clone(), tensor));
        name
    }

    /// The rank of a value, where it is known.
    pub(crate) fn rank(&self, value: &str) -> Option<usize> {
        self.facts.get(value)?.rank()
    }

    /// The type of a value, where it is known.
    pub(crate) fn dtype(&self, value: &str) -> Option<attar_tensor::DType> {
        self.facts.get(value).map(|fact| fact.dtype)
    }

    /// A node whose outputs are new values; gives the name of the first.
    pub(crate) fn step(
        &mut self,
        node: &Node,
        op_type: &str,
        suffix: &str,
        inputs: &[&str],
        attributes: &[(&str, AttributeValue)],
    ) -> String {
        let output = self.name(node, suffix);
        let mut step = Node::new(op_type, &output, inputs, &[&output]);
        let pairs = attributes
            .iter()
            .map(|(name, value)| ((*name).to_string(), Attribute::from(value.clone())));
        step.attributes = pairs.collect::<IndexMap<_, _>>();
        self.push(step);
        output
    }
}

/// The model with its functions inlined and its nodes in terms that attar knows, if it is not so
/// already.
pub(crate) fn prepared(model: &Model) -> Result<Option<Model>, OpsetError> {
    if model.functions.is_empty() && !graph_needs(&model.graph, model.opset()) {
        return Ok(None);
    }
    let mut prepared = model.clone();
    inline_functions(&mut prepared)?;
    upgrade_for_running(&mut prepared)?;
    Ok(Some(prepared))
}
