//! x · clip(x + 3, 0, 6) / 6 and x · `hard_sigmoid(x)`, as exporters write it → `HardSwish`
//! (Howard et al., 2019, arXiv:1905.02244).

use attar_graph::{Edit, Links, Model, Node, Plan};

use super::window::bounds;
use super::{producer, with_scalar};

pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, node) in graph.nodes.iter().enumerate() {
        let input = scaled(&links, node, 1.0 / 6.0)
            .and_then(|product| {
                either(producer(&links, product, "Mul")?.1, |x, other| {
                    is_clipped(&links, other, x).then_some(x)
                })
            })
            .or_else(|| either(node, |x, other| is_hard_sigmoid(&links, other, x).then_some(x)));
        if let Some(x) = input {
            let node = Node::new("HardSwish", &node.name, &[x], &[&node.outputs[0]]);
            plan.push(Edit::ReplaceNode { index, node });
        }
    }
    plan
}

/// The operands of a product, tried in both orders.
fn either<'a>(
    node: &'a Node,
    found: impl Fn(&'a str, &'a str) -> Option<&'a str>,
) -> Option<&'a str> {
    if !node.is("Mul") {
        return None;
    }
    let (a, b) = (node.input(0)?, node.input(1)?);
    found(a, b).or_else(|| found(b, a))
}

/// What a node multiplies by `factor`, or divides by its inverse.
fn scaled<'a>(links: &Links<'a>, node: &'a Node, factor: f32) -> Option<&'a str> {
    if !node.is("Mul") && !node.is("Div") {
        return None;
    }
    let (inner, scalar) = with_scalar(links, node)?;
    let found = if node.is("Div") { 1.0 / scalar } else { scalar };
    ((found - factor).abs() < 1e-6).then_some(inner)
}

/// Whether `value` is clip(x + 3, 0, 6).
fn is_clipped(links: &Links, value: &str, x: &str) -> bool {
    let clipped = || {
        let (_, clip) = producer(links, value, "Clip")?;
        let (_, add) = producer(links, clip.input(0)?, "Add")?;
        let (inner, three) = with_scalar(links, add)?;
        Some(bounds(links, clip)? == [0.0, 6.0] && inner == x && three == 3.0)
    };
    clipped() == Some(true)
}

/// Whether `value` is clamp(x / 6 + ½, 0, 1).
fn is_hard_sigmoid(links: &Links, value: &str, x: &str) -> bool {
    if let Some((_, node)) = producer(links, value, "HardSigmoid") {
        let is_sixth = node.float_or("alpha", 0.2).is_ok_and(|a| (a - 1.0 / 6.0).abs() < 1e-6);
        return node.input(0) == Some(x) && is_sixth && node.float_or("beta", 0.5) == Ok(0.5);
    }
    let inner = links.producer(value).and_then(|(_, node)| scaled(links, node, 1.0 / 6.0));
    inner.is_some_and(|inner| is_clipped(links, inner, x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    #[test]
    fn every_way_to_write_it_is_one_operator() {
        let head = "three = [3]\nsix = [6]\nlow = [0]\na = Add(x, three)\nc = Clip(a, low, six)\n";
        for tail in ["m = Mul(x, c)\ny = Div(m, six)", "d = Div(c, six)\ny = Mul(d, x)"] {
            let graph = graph_from_text(&format!("{head}{tail}"));
            let plan = plan(&Model { graph, ..Model::default() });
            assert_eq!(plan.edits.len(), 1, "{tail}");
        }
    }
}
