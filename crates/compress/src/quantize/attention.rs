//! Where attention takes 8-bit inputs: Q, K and V in Y = softmax(scale·Q·Kᵀ + mask)·V
//! (Vaswani et al., 2017, arXiv:1706.03762).
//!
//! The probabilities stay in float. Most are far below 1, where 256 steps from 0 to 1 are coarse:
//! in these steps they alone moved vectors of texts of a hundred tokens by more than Q, K and V do
//! together, and `builtin` needs no range for them.

use attar_graph::{Graph, Links, Node};
use serde::Deserialize;

use crate::Exclude;

/// The setting: by the rule, everywhere, or nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub(crate) enum QuantizedAttention {
    /// Where products in 8 bits make Q, K and V: their kernels round what they write in passing.
    #[default]
    Auto,
    All,
    Off,
}

impl TryFrom<toml::Value> for QuantizedAttention {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match &value {
            toml::Value::String(text) if text == "auto" => Ok(Self::Auto),
            toml::Value::Boolean(true) => Ok(Self::All),
            toml::Value::Boolean(false) => Ok(Self::Off),
            _ => Err(format!("attention is {value}, expected \"auto\", true or false")),
        }
    }
}

/// A value, and an input that reads it, as (node, input).
#[derive(Debug, PartialEq)]
pub(super) struct Reading {
    pub(super) value: String,
    pub(super) reader: (usize, usize),
}

/// Q, K and V of every attention of the graph that nothing excludes, each before it is split into
/// heads: there a product writes it, and runtimes move the pair past the reshape and the transpose.
pub(super) fn find_attention(graph: &Graph, links: &Links, exclude: &Exclude) -> Vec<[Reading; 3]> {
    let softmaxes = graph.nodes.iter().filter(|node| node.is("Softmax"));
    softmaxes.filter_map(|softmax| operands(graph, links, exclude, softmax)).collect()
}

fn operands(
    graph: &Graph,
    links: &Links,
    exclude: &Exclude,
    softmax: &Node,
) -> Option<[Reading; 3]> {
    let (context_index, context) = links.only_use(softmax.outputs.first()?)?;
    let scores_index = product_behind(links, softmax.input(0)?)?;
    let nodes = [softmax, context, &graph.nodes[scores_index]];
    if nodes.iter().any(|node| exclude.matches(node.label()))
        || !is_activation_product(links, context)
        || context.input(0)? != softmax.outputs[0]
    {
        return None;
    }
    let operands = [(scores_index, 0), (scores_index, 1), (context_index, 1)]
        .map(|reader| before_heads(graph, links, reader));
    let is_taken = |reading: &Reading| {
        exclude.matches(&reading.value)
            || links.producer(&reading.value).is_some_and(|(_, node)| node.is("DequantizeLinear"))
    };
    (!operands.iter().any(is_taken)).then_some(operands)
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

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;

    use super::*;

    const BERT: &str = "
        q = MatMul(x, wq)\nq1 = Add(q, bq)\nq2 = Reshape(q1, split)\nq3 = Transpose(q2)
        k = MatMul(x, wk)\nk1 = Reshape(k, split)\nk2 = Transpose(k1)\nk3 = Transpose(k2)
        v = MatMul(x, wv)\nv1 = Reshape(v, split)\nv2 = Transpose(v1)
        s = MatMul(q3, k3)\ns1 = Div(s, root)\ns2 = Add(bias, s1)\ns3 = Add(s2, mask)
        p = Softmax(s3)\nc = MatMul(p, v2)\ny = Relu(c)";

    /// What is found, as `value>reader`.
    fn found(text: &str, exclude: &[&str]) -> Vec<String> {
        let mut graph = graph_from_text(text);
        for name in ["wq", "wk", "wv", "bq", "split", "root"] {
            graph.inputs.retain(|input| input.name != name);
            graph.set_initializer(name, attar_tensor::Tensor::scalar(1.0_f32));
        }
        let exclude = Exclude::new(exclude.iter().map(ToString::to_string).collect());
        let shown = |reading: &Reading| {
            let (node, input) = reading.reader;
            format!("{}>{}.{input}", reading.value, graph.nodes[node].outputs[0])
        };
        let all = find_attention(&graph, &Links::new(&graph), &exclude);
        all.iter().flatten().map(shown).collect()
    }

    #[test]
    fn operands_are_taken_before_they_are_split_into_heads() {
        assert_eq!(found(BERT, &[]), ["q1>q2.0", "k>k1.0", "v>v1.0"]);
    }

    #[test]
    fn a_value_that_others_read_is_quantized_behind_them() {
        let text = BERT.to_string() + "\nz = Relu(k1)";
        assert_eq!(found(&text, &[]), ["q1>q2.0", "k1>k2.0", "v>v1.0"]);
        let scaled = BERT.replace("s = MatMul(q3, k3)", "q4 = Mul(q3, root)\ns = MatMul(q4, k3)");
        assert_eq!(found(&scaled, &[])[0], "q4>s.0");
    }

    #[test]
    fn what_is_excluded_or_no_attention_is_left_alone() {
        for name in ["s", "p", "c", "q1"] {
            assert!(found(BERT, &[name]).is_empty(), "{name}");
        }
        assert!(found(&BERT.replace("c = MatMul(p, v2)", "c = MatMul(p, wv)"), &[]).is_empty());
        assert!(found("y = Softmax(x)", &[]).is_empty());
    }
}
