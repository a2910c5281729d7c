//! What the channels of a group are, by the nodes that read their weights.

use attar_graph::{Links, Model, Node};
use attar_ops::MICROSOFT_DOMAIN;

use super::{ChannelGroup, ChannelKind, GroupAxis};

/// The kind of a group and the node that it is named for; `None` where no node reads a matrix or
/// kernel of it.
pub(super) fn kind_of(
    model: &Model,
    links: &Links,
    group: &ChannelGroup,
) -> Option<(ChannelKind, String)> {
    let mut readers: Vec<(&Node, usize, usize, &GroupAxis)> = Vec::new();
    for axis in group.axes.iter().filter(|axis| axis.is_constant && axis.reader.is_none()) {
        for used in links.uses(&axis.tensor) {
            let node = &model.graph.nodes[used.node];
            readers.push((node, used.node, used.input?, axis));
        }
    }
    let is_one = |node: &Node, ops: &[&str]| {
        let is_known = matches!(node.domain.as_str(), "" | "ai.onnx" | MICROSOFT_DOMAIN);
        is_known && ops.contains(&node.op_type.as_str())
    };
    let is_any = |ops: &[&str]| readers.iter().any(|(node, ..)| is_one(node, ops));
    let is_unit = |(node, _, input, axis): &(&Node, usize, usize, &GroupAxis)| {
        is_one(node, &["LSTM", "GRU", "RNN"]) && (*input, axis.axis) == (2, 2)
    };
    let product = readers
        .iter()
        .filter(|(node, _, input, _)| *input == 1 && !node.is("Gather"))
        .min_by_key(|(_, index, ..)| *index)?;
    let several: Vec<&GroupAxis> = readers
        .iter()
        .filter(|(node, ..)| {
            is_one(node, &["MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Attention"])
        })
        .map(|(.., axis)| *axis)
        .filter(|axis| axis.per_channel > 1)
        .collect();
    // Neighbours that turn together are places of every head.
    let is_turned = |group: &ChannelGroup| {
        group.axes.iter().filter(|axis| !axis.is_constant).any(|axis| {
            links.uses(&axis.tensor).iter().any(|used| {
                let node = &model.graph.nodes[used.node];
                is_one(node, &["RotaryEmbedding"]) && node.int_or("interleaved", 0) == Ok(1)
            })
        })
    };
    let kind = if !group.is_exact {
        ChannelKind::Width
    } else if readers.iter().any(is_unit) {
        ChannelKind::Recurrent
    } else if is_any(&["Conv", "ConvTranspose", "FusedConv"]) {
        ChannelKind::Conv
    } else if several.iter().any(|axis| is_block(axis) || (is_run(axis) && !is_turned(group))) {
        ChannelKind::Heads
    } else if !several.is_empty() {
        ChannelKind::HeadDims
    } else if is_any(&["Gather"]) {
        ChannelKind::Width
    } else {
        ChannelKind::Columns
    };
    Some((kind, product.0.label().to_string()))
}

/// Whether a channel is one run of neighbours, as a head is.
fn is_block(axis: &GroupAxis) -> bool {
    axis.of(0).windows(2).all(|pair| pair[1] == pair[0] + 1)
}

/// Whether it begins with neighbours: several heads of queries may go with one of keys.
fn is_run(axis: &GroupAxis) -> bool {
    axis.indices[1] == axis.indices[0] + 1
}
