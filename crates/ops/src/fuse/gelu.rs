//! x · ½ · (1 + erf(x/√2)) in any of the orders exporters multiply it; and the same with the tanh
//! approximation, tanh(√(2/π) · (x + 0.044715·x³)) in place of the erf.

use attar_graph::{Edit, Links, Model, Node, Plan};

use super::{producer, with_scalar};

pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, node)| node.is("Mul")) {
        if let Some((x, form)) = input_of_gelu(&links, node) {
            let outputs: Vec<&str> = node.outputs.iter().map(String::as_str).collect();
            let mut gelu = Node::new("Gelu", &node.name, &[x], &outputs);
            if form == Form::Tanh {
                gelu = gelu.with_attribute("approximate", "tanh");
            }
            plan.push(Edit::ReplaceNode { index, node: gelu });
        }
    }
    plan
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Exact,
    Tanh,
}

/// x and the form, if `node` is the last multiplication of a GELU.
fn input_of_gelu<'a>(links: &Links<'a>, node: &'a Node) -> Option<(&'a str, Form)> {
    // (x · (1 + erf)) · ½
    if let Some((product, half)) = with_scalar(links, node)
        && close(half, 0.5)
    {
        let (_, product) = producer(links, product, "Mul")?;
        return either_order(product, |x, sum| one_plus(links, sum, x));
    }
    either_order(node, |a, b| {
        // (½ · x) · (1 + erf), or x · (½ · (1 + erf))
        if let Some((_, half_x)) = producer(links, a, "Mul")
            && let Some((x, half)) = with_scalar(links, half_x)
            && close(half, 0.5)
            && let Some(found) = one_plus(links, b, x)
        {
            return Some(found);
        }
        let (_, half_sum) = producer(links, b, "Mul")?;
        let (sum, half) = with_scalar(links, half_sum)?;
        if close(half, 0.5) { one_plus(links, sum, a) } else { None }
    })
}

fn either_order<'a, T>(
    node: &'a Node,
    matches: impl Fn(&'a str, &'a str) -> Option<T>,
) -> Option<T> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    matches(a, b).or_else(|| matches(b, a))
}

/// `x` and the form, if `sum` is 1 + erf(x/√2) or 1 + tanh(√(2/π) · (x + 0.044715·x³)).
fn one_plus<'a>(links: &Links<'a>, sum: &str, x: &'a str) -> Option<(&'a str, Form)> {
    let (_, add) = producer(links, sum, "Add")?;
    let (inner, one) = with_scalar(links, add)?;
    let (_, function) = links.producer(inner)?;
    let (_, scaled) = links.producer(function.input(0)?)?;
    let (inner, factor) = with_scalar(links, scaled)?;
    let is_factor = |by: f32| {
        (scaled.is("Mul") && close(factor, by)) || (scaled.is("Div") && close(factor, 1.0 / by))
    };
    if !close(one, 1.0) {
        None
    } else if function.is("Erf") && is_factor(std::f32::consts::FRAC_1_SQRT_2) && inner == x {
        Some((x, Form::Exact))
    } else if function.is("Tanh") && is_factor(ROOT) && is_with_cube(links, inner, x) {
        Some((x, Form::Tanh))
    } else {
        None
    }
}

/// √(2/π)
const ROOT: f32 = 0.797_884_6;

/// Whether `sum` is x + 0.044715·x³.
fn is_with_cube(links: &Links, sum: &str, x: &str) -> bool {
    let found = producer(links, sum, "Add").and_then(|(_, add)| {
        either_order(add, |a, b| {
            let (_, scaled) = producer(links, b, "Mul").filter(|_| a == x)?;
            let (cube, factor) = with_scalar(links, scaled)?;
            (close(factor, 0.044_715) && is_cube(links, cube, x)).then_some(())
        })
    });
    found.is_some()
}

/// Whether `cube` is x³ or x·x·x.
fn is_cube(links: &Links, cube: &str, x: &str) -> bool {
    let Some((_, node)) = links.producer(cube) else { return false };
    let is_square = |value: &str| {
        producer(links, value, "Mul").is_some_and(|(_, node)| node.inputs.iter().all(|i| i == x))
    };
    if node.is("Pow") {
        with_scalar(links, node)
            .is_some_and(|(base, power)| base == x && power == 3.0 && node.input(0) == Some(base))
    } else {
        node.is("Mul")
            && either_order(node, |a, b| (a == x && is_square(b)).then_some(())).is_some()
    }
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
    fn the_tanh_approximation_is_recognized_with_either_cube() {
        let cubes = ["c = Pow(x, three)", "q = Mul(x, x)\nc = Mul(x, q)"];
        for cube in cubes {
            let graph = graph_from_text(&format!(
                "half = [0.5]\none = [1]\nthree = [3]\nf = [0.044715]\nroot = [0.79788458]
                 h = Mul(x, half)\n{cube}\nd = Mul(c, f)\ns = Add(x, d)\nr = Mul(s, root)
                 t = Tanh(r)\np = Add(t, one)\ny = Mul(h, p)"
            ));
            let mut model = Model { graph, ..Model::default() };
            let plan = plan(&model);
            attar_graph::apply(&mut model.graph, &plan).unwrap();
            let last = model.graph.nodes.last().unwrap();
            assert_eq!((last.op_type.as_str(), &last.inputs[..]), ("Gelu", &["x".to_string()][..]));
            assert_eq!(last.text("approximate").unwrap(), Some("tanh"), "{cube}");
        }
    }

    #[test]
    fn another_power_is_no_gelu() {
        for power in ["c = Pow(x, two)", "c = Pow(three, x)"] {
            let graph = graph_from_text(&format!(
                "half = [0.5]\none = [1]\ntwo = [2]\nthree = [3]\nf = [0.044715]
                 root = [0.79788458]\nh = Mul(x, half)\n{power}\nd = Mul(c, f)\ns = Add(x, d)
                 r = Mul(s, root)\nt = Tanh(r)\np = Add(t, one)\ny = Mul(h, p)"
            ));
            assert!(plan(&Model { graph, ..Model::default() }).is_empty(), "{power}");
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
