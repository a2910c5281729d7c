use attar_graph::testing::graph_from_text;
use attar_graph::{Model, apply};
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::Tensor;

use crate::{Context, pass_entry};

const INPUT: usize = 5;
const HIDDEN: usize = 4;

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 31 + seed) * 7919 % 1009) as f32 / 1009.0 - 0.5).collect()
}

/// A layer of `steps`, with the inputs in `inputs`: x, w, r, perhaps b, h0 and c0.
fn layer(op: &str, inputs: &str, settings: &str, steps: &str) -> Model {
    let directions = if settings.contains("bidirectional") { 2 } else { 1 };
    let gates = match op {
        "LSTM" => 4,
        "GRU" => 3,
        _ => 1,
    };
    let outputs = if op == "LSTM" { "y, h, c" } else { "y, h" };
    let mut graph = graph_from_text(&format!(
        "x: f32[{steps}, n, {INPUT}]\nh0: f32[{directions}, n, {HIDDEN}]\n\
         c0: f32[{directions}, n, {HIDDEN}]\n\
         {outputs} = {op}({inputs}, hidden_size={HIDDEN}{settings})"
    ));
    let rows = gates * HIDDEN;
    for (name, shape) in [
        ("w", vec![directions, rows, INPUT]),
        ("r", vec![directions, rows, HIDDEN]),
        ("b", vec![directions, 2 * rows]),
    ] {
        let values = numbers(shape.iter().product(), name.len() + usize::from(name.as_bytes()[0]));
        graph.set_initializer(name, Tensor::new(&shape, &values));
    }
    let read: Vec<&str> = inputs.split(", ").collect();
    graph.initializers.retain(|name, _| read.contains(&name.as_str()));
    graph.inputs.retain(|input| matches!(input.name.as_str(), "x" | "h0" | "c0"));
    graph.inputs.retain(|input| read.contains(&input.name.as_str()));
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { ir_version: 8, opsets, graph, ..Model::default() }
}

fn unrolled(model: &Model) -> (Model, Vec<String>) {
    let pass = pass_entry("unroll").unwrap().build(toml::Table::new()).unwrap();
    let plan = pass.plan(model, &Context::new(&Builtin)).unwrap();
    let mut result = model.clone();
    apply(&mut result.graph, &plan).unwrap();
    (result, plan.remarks)
}

fn run(model: &Model) -> Vec<Tensor> {
    let feeds: Vec<(&str, Tensor)> = (model.graph.inputs.iter())
        .map(|input| {
            let known = |dim: &attar_graph::Dim| dim.known().map_or(3, |size| size as usize);
            let shape: Vec<usize> = input.shape().unwrap().iter().map(known).collect();
            let values = numbers(shape.iter().product(), 7);
            (input.name.as_str(), Tensor::new(&shape, &values))
        })
        .collect();
    let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, tensor)| (*name, tensor)).collect();
    Builtin.load(model, &RunOptions::default()).unwrap().run(&feeds).unwrap()
}

#[test]
fn an_unrolled_layer_computes_the_same() {
    let mut count = 0;
    for (op, settings) in [
        ("LSTM", ""),
        ("LSTM", ", clip=0.3, input_forget=1"),
        (
            "LSTM",
            ", activations=HardSigmoid,Tanh,Softsign, activation_alpha=0.3, activation_beta=0.4",
        ),
        ("GRU", ""),
        ("GRU", ", linear_before_reset=1"),
        ("RNN", ""),
        ("RNN", ", activations=Relu"),
    ] {
        for direction in ["forward", "reverse", "bidirectional"] {
            if direction == "bidirectional" && settings.contains("activations") {
                continue;
            }
            for inputs in ["x, w, r", "x, w, r, b", "x, w, r, b, , h0", "x, w, r, b, , h0, c0"] {
                if inputs.contains("c0") && op != "LSTM" {
                    continue;
                }
                for steps in ["1", "5"] {
                    let settings = format!("{settings}, direction={direction}");
                    let model = layer(op, inputs, &settings, steps);
                    let (result, _) = unrolled(&model);
                    let place = format!("{op}({inputs}){settings} of {steps} steps");
                    assert!(!result.graph.nodes.iter().any(|node| node.is(op)), "{place}");
                    for (found, expected) in run(&result).iter().zip(&run(&model)) {
                        assert_eq!(found.shape(), expected.shape(), "{place}");
                        let pairs = found.slice::<f32>().iter().zip(expected.slice::<f32>());
                        let worst = pairs.fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
                        assert!(worst < 1e-5, "{place}: {worst}");
                    }
                    count += 1;
                }
            }
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn what_cannot_be_unrolled_stays_and_is_said() {
    for (inputs, settings, steps, reason) in [
        ("x, w, r", "", "t", "number of steps is not known"),
        ("x, w, r", "", "65", "has 65 steps"),
        ("x, w, r", ", layout=1", "3", "batch comes first"),
        ("x, w, r", ", activations=Sigmoid,Affine,Tanh", "3", "`Affine` is no operator"),
    ] {
        let model = layer("LSTM", inputs, settings, steps);
        let (result, remarks) = unrolled(&model);
        assert_eq!(result.graph.nodes.len(), 1);
        assert!(remarks[0].contains(reason), "{remarks:?}");
    }
}
