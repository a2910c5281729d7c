//! Whether a channel without weights is zero where products are summed over it.
//!
//! A product with a constant has a weight of zero for such a channel. A product of two computed
//! tensors, as of queries and keys, sums what they hold: nothing, unless a function that does not
//! keep zero, as a sigmoid, stands between it and the weights.

use std::collections::BTreeSet;

use attar_graph::{Model, Node};
use attar_ops::channels::Port;

use super::places::Places;

/// Operators that give zero where all that has the channel is zero.
const KEEP: &[&str] = &[
    "Abs",
    "Add",
    "AveragePool",
    "BatchNormalization",
    "BiasGelu",
    "Cast",
    "Celu",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "Elu",
    "Erf",
    "Expand",
    "FastGelu",
    "Flatten",
    "FusedMatMul",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "LayerNormalization",
    "LeakyRelu",
    "MatMul",
    "MaxPool",
    "Mish",
    "Neg",
    "PRelu",
    "QuickGelu",
    "RMSNormalization",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "RotaryEmbedding",
    "Selu",
    "Sin",
    "SimplifiedLayerNormalization",
    "Slice",
    "Softsign",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
    "Transpose",
    "Unsqueeze",
];

/// Operators that give zero where one factor is zero.
const MULTIPLY: &[&str] = &["Mul"];

/// Operators of which input 0 alone counts.
const FIRST: &[&str] = &["Div"];

/// Whether every sum of products over the channels of `axes` is of zeros once their weights are.
pub(super) fn sums_zeros(
    model: &Model,
    places: &Places,
    axes: &[(usize, usize)],
    summed: &[[usize; 2]],
) -> bool {
    let lies_on = |axis: usize| axes.binary_search_by_key(&axis, |&(axis, _)| axis).is_ok();
    let mut sums = summed.iter().filter(|[a, b]| lies_on(*a) && lies_on(*b)).peekable();
    if sums.peek().is_none() {
        return true;
    }
    let tensors: BTreeSet<usize> = axes.iter().map(|&(axis, _)| places.axes[axis].tensor).collect();
    let mut zero: BTreeSet<usize> =
        tensors.iter().copied().filter(|&tensor| places.tensors[tensor].is_constant).collect();
    for (index, node) in model.graph.nodes.iter().enumerate() {
        let at = |port: Port| places.at(&model.graph, index, port);
        let outputs: Vec<usize> = (0..node.outputs.len())
            .filter_map(|output| at(Port::Output(output)))
            .filter(|tensor| tensors.contains(tensor))
            .collect();
        if outputs.is_empty() {
            continue;
        }
        let state = |input: usize| match at(Port::Input(input)) {
            Some(tensor) if zero.contains(&tensor) => Held::Zero,
            Some(tensor) if tensors.contains(&tensor) => Held::Number,
            _ => Held::Other,
        };
        if keeps_zero(node, state) {
            zero.extend(outputs);
        }
    }
    let is_zero = |axis: usize| zero.contains(&places.axes[axis].tensor);
    sums.all(|&[a, b]| is_zero(a) || is_zero(b))
}

/// What an input holds in the channel.
#[derive(Clone, Copy, PartialEq)]
enum Held {
    Zero,
    Number,
    /// It has no such channel.
    Other,
}

fn keeps_zero(node: &Node, state: impl Fn(usize) -> Held) -> bool {
    let is_in = |list: &[&str]| list.contains(&node.op_type.as_str());
    let mut states = (0..node.inputs.len()).map(&state);
    if is_in(MULTIPLY) {
        return states.any(|held| held == Held::Zero);
    }
    if is_in(FIRST) {
        return state(0) == Held::Zero;
    }
    // What is added to all channels alike is added to this one too.
    let is_added = |index: &usize| match node.op_type.as_str() {
        "Add" | "Sub" | "Sum" => true,
        "Conv" | "ConvTranspose" | "Gemm" | "BatchNormalization" | "LayerNormalization" => {
            *index == 2
        }
        "BiasGelu" | "FastGelu" => *index == 1,
        _ => false,
    };
    is_in(KEEP)
        && states.all(|held| held != Held::Number)
        && (0..node.inputs.len()).any(|index| state(index) == Held::Zero)
        && (0..node.inputs.len())
            .filter(|&index| node.input(index).is_some())
            .filter(is_added)
            .all(|index| state(index) == Held::Zero)
}
