//! How a model ends: the vector before its last normalization, and the product that makes it.

use std::collections::BTreeSet;

use attar_graph::{Graph, Links, Node};
use attar_tensor::{DType, Tensor};

use crate::Exclude;

/// The value that becomes shorter, and what makes the output of it.
pub(super) struct Ending {
    pub(super) value: String,
    /// Nodes between the value and the output: those of an L2 normalization, or none.
    pub(super) nodes: BTreeSet<usize>,
}

impl Ending {
    /// That of an output of rank `rank`. A normalization of which another node reads a part is
    /// none: it would read something else.
    pub(super) fn of(links: &Links, graph: &Graph, output: &str, rank: usize) -> Self {
        let whole = Self { value: output.into(), nodes: BTreeSet::new() };
        let Some((_, last)) = links.producer(output) else { return whole };
        let Some(value) = normalized(links, last, rank) else { return whole };
        let nodes = between(links, graph, value, output);
        let leaks = nodes.iter().flat_map(|&index| &graph.nodes[index].outputs).any(|name| {
            let is_read_elsewhere = links.uses(name).iter().any(|used| !nodes.contains(&used.node));
            is_read_elsewhere || (name != output && graph.is_output(name))
        });
        if leaks { whole } else { Self { value: value.into(), nodes } }
    }

    pub(super) fn is_normalized(&self) -> bool {
        !self.nodes.is_empty()
    }
}

/// x, where `node` computes x / ‖x‖ along the last axis.
fn normalized<'a>(links: &Links<'a>, node: &'a Node, rank: usize) -> Option<&'a str> {
    let [a, b] = [node.input(0)?, node.input(1).unwrap_or_default()];
    match node.op_type.as_str() {
        "LpNormalization" => {
            let axis = node.int_or("axis", -1).ok()?;
            (node.int_or("p", 2) == Ok(2) && is_last(axis, rank)).then_some(a)
        }
        "Div" => is_length(links, b, a, rank).then_some(a),
        "Mul" => [(a, b), (b, a)].into_iter().find_map(|(x, factor)| {
            let (_, inverse) = links.producer(factor).filter(|(_, node)| node.is("Reciprocal"))?;
            is_length(links, inverse.input(0)?, x, rank).then_some(x)
        }),
        _ => None,
    }
}

fn is_last(axis: i64, rank: usize) -> bool {
    axis == -1 || axis == rank as i64 - 1
}

/// Steps from a vector to its length that are looked at.
const STEPS_MAX: usize = 8;

/// Whether `name` is ‖x‖ along the last axis, perhaps bounded below.
fn is_length(links: &Links, name: &str, x: &str, rank: usize) -> bool {
    let mut name = name;
    // What is still to come, against the order of computing.
    let (mut is_squared, mut is_flat) = (false, false);
    for _ in 0..STEPS_MAX {
        let Some((_, node)) = links.producer(name) else { return false };
        let [a, b] = [0, 1].map(|index| node.input(index).unwrap_or_default());
        name = match node.op_type.as_str() {
            "ReduceL2" | "ReduceSumSquare" | "ReduceSum" => {
                let is_kept = node.int_or("keepdims", 1).is_ok_and(|keeps| keeps != 0);
                let fits = is_kept != is_flat && reduces_last(links, node, rank);
                return fits
                    && match node.op_type.as_str() {
                        "ReduceL2" => !is_squared && a == x,
                        "ReduceSumSquare" => is_squared && a == x,
                        _ => is_squared && is_square(links, a, x),
                    };
            }
            "Sqrt" if !is_squared => {
                is_squared = true;
                a
            }
            "Unsqueeze" if !is_flat => {
                is_flat = true;
                a
            }
            "Expand" | "Identity" | "Clip" => a,
            "Max" | "Add" if links.constant(b).is_some() => a,
            "Max" | "Add" if links.constant(a).is_some() => b,
            _ => return false,
        };
    }
    false
}

/// Whether `name` is x².
fn is_square(links: &Links, name: &str, x: &str) -> bool {
    let Some((_, node)) = links.producer(name) else { return false };
    let is_two = |power: &Tensor| {
        power.dtype() == DType::F32 && power.values::<f32>()[..] == [2.0]
            || power.to_i64().is_some_and(|powers| powers == [2])
    };
    match node.op_type.as_str() {
        "Mul" => node.inputs == [x, x],
        "Pow" => {
            node.input(0) == Some(x)
                && node.input(1).and_then(|name| links.constant(name)).is_some_and(is_two)
        }
        _ => false,
    }
}

fn reduces_last(links: &Links, node: &Node, rank: usize) -> bool {
    let given = node.input(1).and_then(|name| links.constant(name)).and_then(Tensor::to_i64);
    let own = node.ints("axes").ok().flatten().map(<[i64]>::to_vec);
    matches!(own.or(given).as_deref(), Some(&[axis]) if is_last(axis, rank))
}

/// Nodes that `to` comes from and that come from `from`.
fn between(links: &Links, graph: &Graph, from: &str, to: &str) -> BTreeSet<usize> {
    let mut after = BTreeSet::new();
    let mut open = vec![from];
    while let Some(name) = open.pop() {
        for used in links.uses(name) {
            if after.insert(used.node) {
                open.extend(graph.nodes[used.node].outputs.iter().map(String::as_str));
            }
        }
    }
    let mut nodes = BTreeSet::new();
    let mut open = vec![to];
    while let Some(name) = open.pop() {
        let Some((index, node)) = links.producer(name) else { continue };
        if name != from && after.contains(&index) && nodes.insert(index) {
            open.extend(node.inputs.iter().map(String::as_str));
        }
    }
    nodes
}

/// The weights of a product, which can take up what is done to its output.
pub(super) struct Source {
    pub(super) weight: String,
    /// Whether they are stored as [outputs, inputs].
    pub(super) is_transposed: bool,
    pub(super) bias: Option<String>,
}

impl Source {
    /// The product that makes the value of an ending, if nothing else reads weights, bias and what
    /// comes of them.
    pub(super) fn of(
        links: &Links,
        graph: &Graph,
        ending: &Ending,
        width: usize,
        exclude: &Exclude,
    ) -> Option<Self> {
        let value = ending.value.as_str();
        let is_own = |name: &str| links.uses(name).len() == 1 && !exclude.matches(name);
        let constant = |name: &str| {
            let found = links.constant(name).filter(|tensor| tensor.dtype() == DType::F32);
            found.filter(|_| is_own(name))
        };
        let is_bias =
            |name: &str| constant(name).is_some_and(|bias| bias.shape().ends_with(&[width]));
        let is_read = |used: &attar_graph::Use| ending.nodes.contains(&used.node);
        // The output itself, or a value that the normalization alone reads.
        if ending.is_normalized() == graph.is_output(value)
            || !links.uses(value).iter().all(is_read)
        {
            return None;
        }
        let (_, mut node) = links.producer(value)?;
        let mut bias = None;
        if node.is("Add") {
            let at = (0..2).find(|&at| node.input(at).is_some_and(is_bias))?;
            bias = Some(node.inputs[at].clone());
            let sum = node.inputs[1 - at].as_str();
            links.only_use(sum)?;
            (_, node) = links.producer(sum)?;
        }
        let is_transposed = match node.op_type.as_str() {
            "MatMul" => false,
            "Gemm" => node.int_or("transB", 0).ok()? != 0,
            _ => return None,
        };
        let weight = node.input(1)?;
        let shape = constant(weight).filter(|_| !exclude.matches(node.label()))?.shape();
        let outputs = *shape.get(usize::from(!is_transposed))?;
        if shape.len() != 2 || outputs != width {
            return None;
        }
        if let Some(inside) = node.input(2) {
            if bias.is_some() || !is_bias(inside) {
                return None;
            }
            bias = Some(inside.into());
        }
        Some(Self { weight: weight.into(), is_transposed, bias })
    }
}
