//! Where attention takes 8-bit inputs: Q, K and V, and the probabilities P, in
//! Y = softmax(scale·Q·Kᵀ + mask)·V (Vaswani et al., 2017, arXiv:1706.03762).

use attar_graph::{Graph, Links, Node};

use crate::Context;

/// An input of a node, as (node, input), and the value that it reads.
#[derive(Debug, PartialEq)]
pub(super) struct Reading {
    pub(super) value: String,
    pub(super) reader: (usize, usize),
}

/// What the two products of one attention read.
#[derive(Debug, PartialEq)]
pub(super) struct AttentionSites {
    /// Q, K and V, each before it is split into heads: there it is written by one product, whose
    /// kernel may round it, and runtimes move the pair past the reshape and the transpose.
    pub(super) operands: [Reading; 3],
    pub(super) probabilities: Reading,
}

/// Every attention of the graph that nothing excludes.
pub(super) fn find_attention(
    graph: &Graph,
    links: &Links,
    context: &Context,
) -> Vec<AttentionSites> {
    let softmaxes = graph.nodes.iter().filter(|node| node.is("Softmax"));
    softmaxes.filter_map(|softmax| sites(graph, links, context, softmax)).collect()
}

fn sites(
    graph: &Graph,
    links: &Links,
    context: &Context,
    softmax: &Node,
) -> Option<AttentionSites> {
    let (context_index, context_product) = links.only_use(softmax.outputs.first()?)?;
    let scores_index = product_behind(links, softmax.input(0)?)?;
    let scores_product = &graph.nodes[scores_index];
    let nodes = [softmax, context_product, scores_product];
    if nodes.iter().any(|node| context.exclude.matches(node.label()))
        || !is_activation_product(links, context_product)
        || context_product.input(0)? != softmax.outputs[0]
    {
        return None;
    }
    let operands = [(scores_index, 0), (scores_index, 1), (context_index, 1)]
        .map(|reader| before_heads(graph, links, reader));
    let is_taken = |site: &Reading| {
        context.exclude.matches(&site.value)
            || links.producer(&site.value).is_some_and(|(_, node)| node.is("DequantizeLinear"))
    };
    if operands.iter().any(is_taken) {
        return None;
    }
    let probabilities = Reading { value: softmax.outputs[0].clone(), reader: (context_index, 0) };
    Some(AttentionSites { operands, probabilities })
}

/// The product that scores come from, under their scale, mask and bias.
fn product_behind(links: &Links, scores: &str) -> Option<usize> {
    const STEPS_MAX: usize = 4;
    let mut open = vec![(scores, 0)];
    while let Some((value, steps)) = open.pop() {
        let Some((index, node)) = links.producer(value) else { continue };
        if is_activation_product(links, node) {
            return Some(index);
        }
        let is_between = ["Add", "Mul", "Div", "Where"].iter().any(|op_type| node.is(op_type));
        if is_between && steps < STEPS_MAX {
            open.extend(node.inputs.iter().rev().map(|input| (input.as_str(), steps + 1)));
        }
    }
    None
}

/// A product of two values that are both computed.
fn is_activation_product(links: &Links, node: &Node) -> bool {
    node.is("MatMul") && node.inputs.iter().all(|input| links.constant(input).is_none())
}

/// The input that leads to `reader` through nothing but reshapes and transposes.
fn before_heads(graph: &Graph, links: &Links, mut reader: (usize, usize)) -> Reading {
    loop {
        let value = &graph.nodes[reader.0].inputs[reader.1];
        let moved = links.producer(value).filter(|(_, node)| {
            (node.is("Transpose") || node.is("Reshape")) && links.only_use(value).is_some()
        });
        match moved {
            Some((index, _)) => reader = (index, 0),
            None => return Reading { value: value.clone(), reader },
        }
    }
}
