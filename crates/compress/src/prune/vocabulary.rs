//! Fewer tokens: the rows of embedding tables that stay.

use std::collections::BTreeSet;

use attar_graph::{Edit, Graph, Links, Model, Node, Plan, Use};
use attar_tensor::{Bytes, DType, Tensor};

use crate::PassError;

/// Which tokens stay.
#[derive(Clone, Copy, Debug)]
pub struct KeptTokens<'a> {
    /// Of each token its number before, ascending.
    pub kept: &'a [u32],
    /// Tokens before.
    pub size_before: usize,
    /// Whether the padding's number is as before: some graphs find padding by it.
    pub padding_stays: bool,
}

/// Keeps the rows of the tables that token ids read, in the order of `kept`. The ids are the graph
/// inputs with `ids` in their names, those of types and positions excepted.
///
/// # Errors
/// [`PassError::Tokens`] naming a node that reads ids, or a table, in a way that the new numbers would
/// break; a model without a table of tokens.
pub fn plan_vocabulary(model: &Model, tokens: &KeptTokens) -> Result<Plan, PassError> {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    let mut tables = BTreeSet::new();
    for (index, node) in readers_of_ids(graph, &links, tokens)? {
        let table = node.inputs[0].as_str();
        let parts: Vec<&str> = match (links.constant(table), links.producer(table)) {
            (Some(_), _) => vec![table],
            // A table in 8 bits that is read through its scales.
            (None, Some((_, producer))) if producer.is("DequantizeLinear") => {
                producer.inputs.iter().map(String::as_str).collect()
            }
            _ => return Err(refusal(node, table, "looks tokens up in a table that is computed")),
        };
        for part in parts {
            let Some(tensor) = links.constant(part) else {
                return Err(refusal(node, part, "looks tokens up in a table that is computed"));
            };
            if tensor.shape().first().is_none_or(|&rows| rows < tokens.size_before) {
                // One scale or zero point for the whole table.
                continue;
            }
            let is_other =
                |user: &&Use| user.node != index && !is_table_reader(&graph.nodes[user.node], part);
            if let Some(other) = links.uses(part).iter().find(is_other) {
                let other = &graph.nodes[other.node];
                return Err(refusal(other, part, "reads the table of tokens otherwise"));
            }
            if tables.insert(part.to_string()) {
                let kept = rows_of(tensor, tokens.kept)
                    .ok_or_else(|| refusal(node, part, "reads rows that are no whole bytes"))?;
                if kept.shape() != tensor.shape() {
                    plan.push(Edit::SetInitializer { name: part.into(), tensor: kept });
                }
            }
        }
    }
    if tables.is_empty() {
        return Err(PassError::Data {
            message: format!("no table of {} tokens is read by token ids", tokens.size_before),
            hint: "the input that holds them must have `ids` in its name".into(),
        });
    }
    Ok(plan)
}

fn is_table_reader(node: &Node, table: &str) -> bool {
    let looks_up = node.is("Gather") || node.is("DequantizeLinear");
    looks_up
        && node.inputs.iter().skip(1).all(|input| input != table || node.is("DequantizeLinear"))
}

fn refusal(node: &Node, tensor: &str, reason: &'static str) -> PassError {
    PassError::Tokens { node: node.label().into(), tensor: tensor.into(), reason }
}

/// The nodes that look token ids up.
fn readers_of_ids<'a>(
    graph: &'a Graph,
    links: &Links<'a>,
    tokens: &KeptTokens,
) -> Result<Vec<(usize, &'a Node)>, PassError> {
    let is_ids = |name: &str| {
        let others = ["type", "mask", "position", "segment"];
        name.contains("ids") && others.iter().all(|other| !name.contains(other))
    };
    let inputs = graph.inputs.iter().map(|input| input.name.clone());
    let mut open: Vec<String> = inputs.filter(|name| is_ids(name)).collect();
    let mut seen: BTreeSet<String> = open.iter().cloned().collect();
    let mut readers = Vec::new();
    while let Some(value) = open.pop() {
        for user in links.uses(&value) {
            let (index, node) = (user.node, &graph.nodes[user.node]);
            if node.is("Gather") && node.inputs.get(1) == Some(&value) {
                if node.int("axis")?.unwrap_or(0) != 0 {
                    return Err(refusal(node, &value, "looks tokens up along another axis"));
                }
                readers.push((index, node));
            } else if ["Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten"]
                .iter()
                .any(|op_type| node.is(op_type))
            {
                let outputs = node.outputs.iter().filter(|name| seen.insert((*name).clone()));
                open.extend(outputs.cloned().collect::<Vec<_>>());
            } else if !(node.is("Shape") || node.is("Size") || tokens.padding_stays) {
                let reason = "reads token ids, and the padding would get another number";
                return Err(refusal(node, &value, reason));
            }
        }
    }
    Ok(readers)
}

/// Rows of a tensor along its first axis; `None` where they are no whole bytes.
fn rows_of(tensor: &Tensor, rows: &[u32]) -> Option<Tensor> {
    let count = *tensor.shape().first()?;
    let is_whole = tensor.dtype() != DType::String && tensor.dtype().bits() >= 8;
    let bytes = is_whole.then(|| tensor.bytes())?;
    let size = bytes.len() / count.max(1);
    let mut kept = Vec::with_capacity(rows.len() * size);
    for &row in rows {
        kept.extend_from_slice(bytes.get(row as usize * size..(row as usize + 1) * size)?);
    }
    let shape = [&[rows.len()], &tensor.shape()[1..]].concat();
    Tensor::from_bytes(tensor.dtype(), &shape, Bytes::from(kept)).ok()
}
