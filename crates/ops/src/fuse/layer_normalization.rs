//! Layer normalization written out, as exporters do below opset 17:
//! (x − mean x) / √(mean (x − mean x)² + ε) · γ + β over the last axis.

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::DType;

use super::{producer, with_scalar};
use crate::{Facts, infer_graph};

pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let mut plan = Plan::default();
    if !graph.nodes.iter().any(|node| node.is("ReduceMean")) {
        return plan;
    }
    let facts = infer_graph(model);
    let links = Links::new(graph);
    for (index, add) in graph.nodes.iter().enumerate().filter(|(_, node)| node.is("Add")) {
        if let Some(node) = normalization(&links, &facts, add) {
            plan.push(Edit::ReplaceNode { index, node });
        }
    }
    plan
}

/// The normalization that ends in `add`, the addition of β.
fn normalization(links: &Links, facts: &Facts, add: &Node) -> Option<Node> {
    let (scaled, beta) = with_vector(links, add)?;
    let (_, mul) = producer(links, scaled, "Mul")?;
    let (normalized, gamma) = with_vector(links, mul)?;
    let (x, epsilon) = standardized(links, facts, normalized)?;
    let size = facts.get(x)?.shape.as_ref()?.last()?.known()?;
    let fits = |vector: &str| {
        let tensor = links.constant(vector)?;
        (tensor.dtype() == DType::F32 && tensor.shape() == [usize::try_from(size).ok()?])
            .then_some(())
    };
    fits(gamma)?;
    fits(beta)?;
    let outputs = [add.outputs.first()?.as_str()];
    let node = Node::new("LayerNormalization", &add.name, &[x, gamma, beta], &outputs);
    Some(node.with_attribute("axis", -1).with_attribute("epsilon", epsilon))
}

/// A node with a constant input: the other input, and the constant.
fn with_vector<'a>(links: &Links<'a>, node: &'a Node) -> Option<(&'a str, &'a str)> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    match (links.constant(a), links.constant(b)) {
        (None, Some(_)) => Some((a, b)),
        (Some(_), None) => Some((b, a)),
        _ => None,
    }
}

/// x and ε, if `value` is (x − mean x) / √(variance + ε).
fn standardized<'a>(links: &Links<'a>, facts: &Facts, value: &'a str) -> Option<(&'a str, f32)> {
    let (_, node) = links.producer(value)?;
    let (centred, root) = if node.is("Div") {
        (node.input(0)?, node.input(1)?)
    } else if node.is("Mul") {
        // Times the reciprocal, in either order.
        let (a, b) = (node.input(0)?, node.input(1)?);
        match (producer(links, a, "Reciprocal"), producer(links, b, "Reciprocal")) {
            (_, Some((_, reciprocal))) => (a, reciprocal.input(0)?),
            (Some((_, reciprocal)), None) => (b, reciprocal.input(0)?),
            (None, None) => return None,
        }
    } else {
        return None;
    };
    let (_, root) = links.producer(root)?;
    let variance = match root.op_type.as_str() {
        "Sqrt" => root.input(0)?,
        "Pow" => match with_scalar(links, root)? {
            (inner, 0.5) => inner,
            _ => return None,
        },
        _ => return None,
    };
    let (_, sum) = producer(links, variance, "Add")?;
    let (mean_square, epsilon) = with_scalar(links, sum)?;
    let square = mean_of(links, facts, mean_square)?;
    let of_square = squared(links, square)?;
    let x = centred_input(links, facts, centred)?;
    // Exporters write the difference twice at times.
    let same = of_square == centred || centred_input(links, facts, of_square) == Some(x);
    same.then_some((x, epsilon))
}

/// d, if `value` is d² .
fn squared<'a>(links: &Links<'a>, value: &str) -> Option<&'a str> {
    let (_, node) = links.producer(value)?;
    match node.op_type.as_str() {
        "Pow" => {
            let (inner, exponent) = with_scalar(links, node)?;
            (inner == node.input(0)? && exponent == 2.0).then_some(inner)
        }
        "Mul" => {
            let (a, b) = (node.input(0)?, node.input(1)?);
            (a == b).then_some(a)
        }
        _ => None,
    }
}

/// x, if `value` is x − mean x.
fn centred_input<'a>(links: &Links<'a>, facts: &Facts, value: &str) -> Option<&'a str> {
    let (_, sub) = producer(links, value, "Sub")?;
    let (x, mean) = (sub.input(0)?, sub.input(1)?);
    (mean_of(links, facts, mean)? == x).then_some(x)
}

/// x, if `value` is its mean over the last axis, which is kept.
fn mean_of<'a>(links: &Links<'a>, facts: &Facts, value: &str) -> Option<&'a str> {
    let (_, mean) = producer(links, value, "ReduceMean")?;
    let x = mean.input(0)?;
    let axes = match mean.input(1) {
        Some(axes) => links.constant(axes)?.to_i64()?,
        None => mean.ints("axes").ok()??.to_vec(),
    };
    let [axis] = axes[..] else { return None };
    let last = facts.get(x)?.rank()? as i64 - 1;
    let keeps = mean.int_or("keepdims", 1).ok()? != 0;
    (keeps && (axis == -1 || axis == last)).then_some(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    fn planned(text: &str) -> String {
        let head = "x: f32[n, 2]\ng = [1 2]\nb = [0 1]\ntwo = [2]\neps = [0.00001]\n";
        let graph = graph_from_text(&format!("{head}{text}"));
        let opsets = [(String::new(), 18)].into_iter().collect();
        plan(&Model { graph, opsets, ..Model::default() }).to_string()
    }

    #[test]
    fn the_written_out_form_becomes_one_node() {
        let text = "m = ReduceMean(x, axes=-1)\nd = Sub(x, m)\np = Pow(d, two)\n\
                    v = ReduceMean(p, axes=1)\na = Add(v, eps)\nr = Sqrt(a)\nn = Div(d, r)\n\
                    s = Mul(n, g)\ny = Add(s, b)";
        assert_eq!(planned(text), "replace node 8 by y = LayerNormalization(x, g, b)\n");
    }

    #[test]
    fn a_mean_over_another_axis_is_no_layer_normalization() {
        let text = "m = ReduceMean(x, axes=0)\nd = Sub(x, m)\np = Mul(d, d)\n\
                    v = ReduceMean(p, axes=0)\na = Add(v, eps)\nr = Sqrt(a)\nn = Div(d, r)\n\
                    s = Mul(n, g)\ny = Add(s, b)";
        assert_eq!(planned(text), "");
    }
}
