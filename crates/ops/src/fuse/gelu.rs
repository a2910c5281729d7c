//! x · ½ · (1 + erf(x/√2)) in any of the orders exporters multiply it.

use attar_graph::{Edit, Links, Model, Node, Plan};

use super::{producer, with_scalar};

pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, node)| node.is("Mul")) {
        if let Some(x) = input_of_gelu(&links, node) {
            let outputs: Vec<&str> = node.outputs.iter().map(String::as_str).collect();
            let gelu = Node::new("Gelu", &node.name, &[x], &outputs);
            plan.push(Edit::ReplaceNode { index, node: gelu });
        }
    }
    plan
}

/// x, if `node` is the last multiplication of a GELU.
fn input_of_gelu<'a>(links: &Links<'a>, node: &'a Node) -> Option<&'a str> {
    // (x · (1 + erf)) · ½
    if let Some((product, half)) = with_scalar(links, node)
        && close(half, 0.5)
    {
        let (_, product) = producer(links, product, "Mul")?;
        return either_order(product, |x, sum| one_plus_erf(links, sum, x));
    }
    either_order(node, |a, b| {
        // (½ · x) · (1 + erf), or x · (½ · (1 + erf))
        if let Some((_, half_x)) = producer(links, a, "Mul")
            && let Some((x, half)) = with_scalar(links, half_x)
            && close(half, 0.5)
            && let Some(x) = one_plus_erf(links, b, x)
        {
            return Some(x);
        }
        let (_, half_sum) = producer(links, b, "Mul")?;
        let (sum, half) = with_scalar(links, half_sum)?;
        if close(half, 0.5) { one_plus_erf(links, sum, a) } else { None }
    })
}

fn either_order<'a>(
    node: &'a Node,
    matches: impl Fn(&'a str, &'a str) -> Option<&'a str>,
) -> Option<&'a str> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    matches(a, b).or_else(|| matches(b, a))
}

/// `x`, if `sum` is 1 + erf(x/√2).
fn one_plus_erf<'a>(links: &Links<'a>, sum: &str, x: &'a str) -> Option<&'a str> {
    let (_, add) = producer(links, sum, "Add")?;
    let (erf, one) = with_scalar(links, add)?;
    let (_, erf) = producer(links, erf, "Erf")?;
    let (_, scaled) = links.producer(erf.input(0)?)?;
    let (inner, factor) = with_scalar(links, scaled)?;
    let is_root = (scaled.is("Div") && close(factor, std::f32::consts::SQRT_2))
        || (scaled.is("Mul") && close(factor, std::f32::consts::FRAC_1_SQRT_2));
    (close(one, 1.0) && is_root && inner == x).then_some(x)
}

/// Equal up to the digits that exporters print.
fn close(found: f32, expected: f32) -> bool {
    (found - expected).abs() <= 1e-4 * expected
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    #[test]
    fn each_order_of_the_factors_is_recognized() {
        let head = "root = [1.4142135]\none = [1]\nhalf = [0.5]\n\
                    d = Div(x, root)\ne = Erf(d)\ns = Add(e, one)\n";
        let tails = [
            "m = Mul(x, s)\ny = Mul(m, half)",
            "m = Mul(x, half)\ny = Mul(m, s)",
            "m = Mul(s, half)\ny = Mul(m, x)",
        ];
        for tail in tails {
            let graph = graph_from_text(&format!("{head}{tail}"));
            let model = Model { graph, ..Model::default() };
            assert_eq!(plan(&model).to_string(), "replace node 4 by y = Gelu(x)\n", "{tail}");
        }
    }

    #[test]
    fn another_root_is_left_alone() {
        let graph = graph_from_text(
            "root = [1.5]\none = [1]\nhalf = [0.5]\nd = Div(x, root)\ne = Erf(d)
             s = Add(e, one)\nm = Mul(x, s)\ny = Mul(m, half)",
        );
        assert!(plan(&Model { graph, ..Model::default() }).is_empty());
    }
}
