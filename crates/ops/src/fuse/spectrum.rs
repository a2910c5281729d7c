//! A convolution with windowed cosines and sines → `Spectrum`, which makes it a fast Fourier transform;
//! with the squares of both halves, their sum and its root, where they follow.

use std::f64::consts::TAU;

use attar_graph::{AttributeValue, Edit, Graph, Links, Model, Node, Plan};
use attar_tensor::{DType, Tensor};

use super::scalar;
use crate::ATTAR_DOMAIN;

/// Shorter transforms are as well multiplied out.
const SIZE_MIN: usize = 32;
/// What cosines and sines stored as f32 are off by, relative to the window's greatest weight.
const ERROR_MAX: f64 = 1e-6;

pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, node)| node.is("Conv")) {
        let Some(basis) = Basis::of(&links, node) else { continue };
        let parts = node.outputs[0].as_str();
        let squares = Squares::of(graph, &links, parts, basis.window.len() / 2 + 1);
        let output = squares.as_ref().map_or(parts, |squares| squares.output);
        let window = format!("{output}/window");
        let size = basis.window.len();
        let tensor = Tensor::new(&[size], &basis.window);
        plan.push(Edit::SetInitializer { name: window.clone(), tensor });
        let form = squares.as_ref().map_or("parts", |squares| squares.form);
        let node = Node::new("Spectrum", node.label(), &[&node.inputs[0], &window], &[output])
            .with_domain(ATTAR_DOMAIN)
            .with_attribute("step", basis.step)
            .with_attribute("pads", AttributeValue::Ints(basis.pads.to_vec()))
            .with_attribute("sine", basis.sine)
            .with_attribute("form", form);
        match squares {
            None => plan.push(Edit::ReplaceNode { index, node }),
            Some(squares) => {
                let gone = std::iter::once(index).chain(squares.before);
                plan.edits.extend(gone.map(|index| Edit::RemoveNode { index }));
                plan.push(Edit::ReplaceNode { index: squares.last, node });
            }
        }
    }
    plan
}

/// What a convolution multiplies stretches of a signal with.
struct Basis {
    window: Vec<f32>,
    /// The sign of the sines.
    sine: f32,
    step: i64,
    pads: [i64; 2],
}

impl Basis {
    fn of(links: &Links, node: &Node) -> Option<Self> {
        let weight = links.constant(node.input(1)?)?;
        let &[rows, 1, size] = weight.shape() else { return None };
        let is_size = size.is_power_of_two() && size >= SIZE_MIN && rows == size + 2;
        let is_padded = !matches!(node.text("auto_pad"), Ok(None | Some("NOTSET" | "VALID")));
        if weight.dtype() != DType::F32 || !is_size || is_padded || node.input(2).is_some() {
            return None;
        }
        let ints = |name: &str| node.ints(name).ok();
        let one = |name: &str| match ints(name)? {
            None => Some(1),
            Some(&[value]) => Some(value),
            _ => None,
        };
        let pads = match ints("pads")? {
            None => [0, 0],
            Some(&[before, after]) => [before, after],
            _ => return None,
        };
        if pads.iter().any(|&pad| pad < 0)
            || one("dilations")? != 1
            || node.int_or("group", 1) != Ok(1)
        {
            return None;
        }
        let weight = weight.values::<f32>();
        // Its first cosine is 1 throughout.
        let window = weight[..size].to_vec();
        let sine = sign_of_sines(&weight, &window)?;
        Some(Self { window, sine, step: one("strides")?, pads })
    }
}

/// The sign that sines have, if `weight` is the window times cosines, then times sines.
fn sign_of_sines(weight: &[f32], window: &[f32]) -> Option<f32> {
    let size = window.len();
    let terms = size / 2 + 1;
    let greatest = window.iter().fold(0.0_f64, |most, w| most.max(f64::from(w.abs())));
    let bound = ERROR_MAX * greatest;
    let turns: Vec<[f64; 2]> = (0..size)
        .map(|n| TAU * n as f64 / size as f64)
        .map(|angle| [angle.cos(), angle.sin()])
        .collect();
    let far = |part: usize, sign: f64| {
        let rows = weight[part * terms * size..].chunks_exact(size).take(terms).enumerate();
        rows.flat_map(|(k, row)| row.iter().zip(window).enumerate().map(move |at| (k, at)))
            .map(|(k, (n, (w, window)))| {
                (f64::from(*w) - sign * f64::from(*window) * turns[k * n % size][part]).abs()
            })
            .fold(0.0_f64, f64::max)
    };
    let is_finite = weight.iter().all(|w| w.is_finite());
    if !is_finite || greatest == 0.0 || far(0, 1.0) > bound {
        return None;
    }
    [1.0_f32, -1.0].into_iter().find(|&sign| far(1, sign.into()) <= bound)
}

/// The squares of cosines' and sines' halves, summed.
struct Squares<'a> {
    form: &'static str,
    output: &'a str,
    /// The node that gives the output, and those before it.
    last: usize,
    before: Vec<usize>,
}

impl<'a> Squares<'a> {
    fn of(graph: &'a Graph, links: &Links<'a>, parts: &str, terms: usize) -> Option<Self> {
        let [one, other] = links.uses(parts) else { return None };
        if graph.is_output(parts) {
            return None;
        }
        let mut before = Vec::new();
        let mut sums = Vec::new();
        let mut starts = Vec::new();
        for half in [one, other] {
            let slice = &graph.nodes[half.node];
            let range = channels(links, slice, parts, terms)?;
            let (square, node) = square(graph, links, &slice.outputs[0])?;
            let (sum, _) = links.only_use(&node.outputs[0]).filter(|(_, node)| node.is("Add"))?;
            before.extend([half.node, square]);
            sums.push(sum);
            starts.push(range);
        }
        starts.sort_unstable();
        if sums[0] != sums[1] || starts != [0, terms] {
            return None;
        }
        let sum = &graph.nodes[sums[0]];
        match links.only_use(&sum.outputs[0]).filter(|(_, node)| node.is("Sqrt")) {
            Some((last, root)) => {
                before.push(sums[0]);
                Some(Self { form: "magnitude", output: &root.outputs[0], last, before })
            }
            None => Some(Self { form: "power", output: &sum.outputs[0], last: sums[0], before }),
        }
    }
}

/// Where the `terms` channels begin that a slice takes of `parts`.
fn channels(links: &Links, slice: &Node, parts: &str, terms: usize) -> Option<usize> {
    if !slice.is("Slice") || slice.input(0) != Some(parts) {
        return None;
    }
    let one = |index: usize| match links.constant(slice.input(index)?)?.to_i64()?[..] {
        [value] => Some(value),
        _ => None,
    };
    let all = 2 * terms as i64;
    let place = |value: i64| if value < 0 { value + all } else { value.min(all) };
    let axis = if slice.input(3).is_some() { one(3)? } else { 0 };
    let step = if slice.input(4).is_some() { one(4)? } else { 1 };
    let (start, end) = (place(one(1)?), place(one(2)?));
    let takes_half = end - start == terms as i64 && matches!(axis, 1 | -2) && step == 1;
    usize::try_from(start).ok().filter(|_| takes_half)
}

/// The node that squares a value and alone reads it.
fn square<'a>(graph: &'a Graph, links: &Links, value: &str) -> Option<(usize, &'a Node)> {
    let uses = links.uses(value);
    let index = uses.first()?.node;
    let node = &graph.nodes[index];
    let is_alone = uses.iter().all(|at| at.node == index && at.input.is_some());
    let is_square = match node.op_type.as_str() {
        _ if !node.domain.is_empty() => false,
        "Pow" => node.input(0) == Some(value) && scalar(links, node.input(1)?) == Some(2.0),
        "Mul" => node.inputs.iter().all(|input| input == value),
        _ => false,
    };
    (is_alone && is_square && !graph.is_output(value)).then_some((index, node))
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;

    use super::*;
    use crate::{Datum, Pool, Program};

    const SIZE: usize = 32;

    /// A convolution of a signal with windowed cosines and sines, and what `tail` says.
    fn model(tail: &str, settings: &str, sine: f64) -> Model {
        let terms = SIZE / 2 + 1;
        let weight = |i: usize| {
            let (row, n) = (i / SIZE, i % SIZE);
            let angle = TAU * (row % terms * n % SIZE) as f64 / SIZE as f64;
            let window = 0.54 - 0.46 * (TAU * n as f64 / SIZE as f64).cos();
            let wave = if row < terms { angle.cos() } else { sine * angle.sin() };
            (window * wave) as f32
        };
        let weights: Vec<f32> = (0..2 * terms * SIZE).map(weight).collect();
        let mut graph = graph_from_text(&format!(
            "x: f32[2, 1, 101]\ntwo = [2]\nc = Conv(x, w{settings})\n{tail}"
        ));
        for (name, value) in [("axis", 1), ("zero", 0), ("half", terms as i64), ("all", 99)] {
            graph.set_initializer(name, Tensor::new(&[1], &[value]));
        }
        graph.set_initializer("w", Tensor::new(&[2 * terms, 1, SIZE], &weights));
        graph.inputs.retain(|input| input.name == "x");
        let opsets = [(String::new(), 17)].into_iter().collect();
        Model { graph, opsets, ..Model::default() }
    }

    const MAGNITUDE: &str = "a = Slice(c, zero, half, axis)\nb = Slice(c, half, all, axis)\n\
                             d = Mul(a, a)\ne = Pow(b, two)\nf = Add(e, d)\ny = Sqrt(f)";

    fn signal() -> Tensor {
        let values: Vec<f32> = (0..202).map(|n| ((n * n % 61) as f32 * 0.7).sin()).collect();
        Tensor::new(&[2, 1, 101], &values)
    }

    fn run(model: &Model, observed: &[String]) -> Tensor {
        let program = Program::new(model.clone(), observed).unwrap();
        let outputs = program.run(vec![Datum::Tensor(signal())], &Pool::default()).unwrap();
        outputs.into_iter().next().unwrap().into_tensor(0).unwrap()
    }

    #[test]
    fn a_spectrum_is_what_the_convolution_gives() {
        let tails = ["y = Relu(c)", MAGNITUDE, "y = Abs(c)\nz = Conv(c, v)"];
        for tail in tails {
            for settings in ["", ", strides=5", ", strides=7, pads=3 40", ", strides=200"] {
                for sine in [1.0, -1.0] {
                    let mut model = model(tail, settings, sine);
                    // Another convolution, for which channels are last.
                    model
                        .graph
                        .set_initializer("v", Tensor::new(&[1, SIZE + 2, 1], &[1.0_f32; 34]));
                    let mut fused = model.clone();
                    let plan = plan(&fused);
                    attar_graph::apply(&mut fused.graph, &plan).unwrap();
                    assert!(fused.graph.nodes.iter().any(|node| node.op_type == "Spectrum"));
                    // What is observed stays a convolution: of its own weights, to whoever asks.
                    model.graph.nodes.iter_mut().filter(|node| node.is("Conv")).for_each(|node| {
                        node.inputs.resize(3, "bias".into());
                    });
                    let zeros = Tensor::new(&[SIZE + 2], &[0.0_f32; SIZE + 2]);
                    if tail.contains("Conv") {
                        model.graph.nodes.last_mut().unwrap().inputs.truncate(2);
                    }
                    model.graph.set_initializer("bias", zeros);
                    let (expected, found) = (run(&model, &[]), run(&fused, &[]));
                    assert_eq!(expected.shape(), found.shape(), "{tail}{settings}");
                    let pairs = expected.slice::<f32>().iter().zip(found.slice::<f32>());
                    let far = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    // Sums of 32 products in f32; roots of small ones have half the digits.
                    assert!(far < 1e-4, "{tail}{settings} {sine}: {far}");
                }
            }
        }
    }

    /// What the spectrum that is found gives.
    fn form(model: &Model) -> Option<String> {
        let mut model = model.clone();
        let plan = plan(&model);
        attar_graph::apply(&mut model.graph, &plan).unwrap();
        let node = model.graph.nodes.iter().find(|node| node.op_type == "Spectrum")?;
        node.text("form").unwrap().map(Into::into)
    }

    #[test]
    fn other_convolutions_and_values_that_others_read_are_left() {
        let mut other = model("y = Relu(c)", "", 1.0);
        assert_eq!(form(&other).as_deref(), Some("parts"));
        let mut weights = other.graph.constant("w").unwrap().values::<f32>().into_owned();
        weights[5 * SIZE + 3] += 1e-4;
        other.graph.set_initializer("w", Tensor::new(&[SIZE + 2, 1, SIZE], &weights));
        assert_eq!(form(&other), None);
        assert_eq!(form(&model("y = Relu(c)", ", dilations=2", 1.0)), None);
        assert_eq!(form(&model("y = Relu(c)", ", auto_pad=SAME_UPPER", 1.0)), None);
        assert_eq!(form(&model(MAGNITUDE, "", 1.0)).as_deref(), Some("magnitude"));
        let power = MAGNITUDE.replace("Sqrt", "Relu");
        assert_eq!(form(&model(&power, "", 1.0)).as_deref(), Some("power"));
        // Squares of one half twice, and a half that another reads too.
        let twice = MAGNITUDE.replace("b = Slice(c, half, all", "b = Slice(c, zero, half");
        assert_eq!(form(&model(&twice, "", 1.0)).as_deref(), Some("parts"));
        let mut shared = model(MAGNITUDE, "", 1.0);
        shared.graph.outputs.push(attar_graph::Value::untyped("a"));
        assert_eq!(form(&shared).as_deref(), Some("parts"));
    }
}
