//! Recomputation, threads, bodies, half types, errors.

use attar_graph::testing::graph_from_text;
use attar_graph::{AttributeValue, Model};
use attar_ops::{Flow, Pool};
use attar_tensor::{DType, Tensor};

use super::{StepContext, Tape, TapeOptions, When};
use crate::TrainError;

fn values(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product();
    let value = |i: usize| (((i + seed) * 7919 % 1009) as f32 / 1009.0 - 0.5) * 1.2;
    Tensor::new(shape, &(0..count).map(value).collect::<Vec<f32>>())
}

fn model_of(text: &str, weights: &[(&str, Tensor)]) -> Model {
    let mut graph = graph_from_text(text);
    for (name, tensor) in weights {
        graph.inputs.retain(|input| input.name != *name);
        graph.set_initializer(*name, tensor.clone());
    }
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { ir_version: 9, opsets, graph, ..Model::default() }
}

fn names(of: &[&str]) -> Vec<String> {
    of.iter().map(|name| (*name).to_string()).collect()
}

/// What the tape reads: in f32, as a trainer hands it.
fn variables(tape: &Tape, model: &Model) -> Vec<Tensor> {
    let contents = |name: &String| model.graph.constant(name).unwrap().converted(DType::F32);
    tape.variables().iter().map(|name| contents(name).unwrap().aligned()).collect()
}

/// Outputs and gradients, the loss being half the sum of the squares of the outputs; and the bytes
/// that the pool had to allocate.
fn run(
    model: &Model,
    trained: &[&str],
    options: &TapeOptions,
    feeds: Vec<Tensor>,
) -> (Vec<Vec<f32>>, usize) {
    let tape = Tape::new(model, &names(trained), options).unwrap();
    let pool = Pool::default();
    let variables = variables(&tape, model);
    let recording = tape.forward(&variables, feeds, StepContext { seed: 5 }, &pool).unwrap();
    let mut found: Vec<Vec<f32>> =
        recording.outputs.iter().map(|y| y.values::<f32>().to_vec()).collect();
    found.extend(recording.updates.iter().map(|(_, tensor)| tensor.values::<f32>().to_vec()));
    let gradients = recording.outputs.iter().cloned().map(Some).collect();
    let mut sums: Vec<Option<Flow>> = vec![None; tape.trained().len()];
    tape.backward(&variables, recording, gradients, &mut sums, &pool).unwrap();
    for sum in sums {
        let sum = sum.map(|flow| flow.into_dense(&pool));
        found.push(sum.map_or(Vec::new(), |tensor| tensor.values::<f32>().to_vec()));
    }
    (found, pool.allocated_bytes())
}

fn with_threads<T: Send>(count: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap().install(work)
}

#[test]
fn recomputed_gradients_are_the_same_bits_in_less_memory() {
    let mut text = String::from("h0 = MatMul(x, w)\n");
    for layer in 0..16 {
        text += &format!("a{layer} = Tanh(h{layer})\n");
        text +=
            &format!("m{layer} = MatMul(a{layer}, w)\nh{} = Sub(m{layer}, a{layer})\n", layer + 1);
    }
    let model = model_of(&text, &[("w", values(&[48, 48], 1))]);
    let feeds = vec![values(&[64, 48], 2)];
    let (kept, kept_bytes) = run(&model, &["w"], &TapeOptions::default(), feeds.clone());
    let options = TapeOptions { recompute: true, ..TapeOptions::default() };
    let (recomputed, bytes) = run(&model, &["w"], &options, feeds);
    assert_eq!(kept, recomputed);
    assert!(kept[1].iter().all(|x| x.is_finite()));
    // Of 16 blocks, those of one of seven segments are held, and what crosses their borders.
    assert!(bytes * 4 < kept_bytes * 3, "{bytes} of {kept_bytes}");
}

/// A layer that is large enough for both threads.
fn recurrent(op: &str, gates: usize, settings: &str) -> (Model, Vec<Tensor>) {
    let outputs = if op == "LSTM" { "y, yh, yc" } else { "y, yh" };
    let text = format!("{outputs} = {op}(x, w, r, b, , h, direction=bidirectional{settings})");
    let rows = gates * 40;
    let weights = [
        ("w", values(&[2, rows, 33], 1)),
        ("r", values(&[2, rows, 40], 2)),
        ("b", values(&[2, 2 * rows], 3)),
        ("h", values(&[2, 10, 40], 4)),
    ];
    (model_of(&text, &weights), vec![values(&[12, 10, 33], 5)])
}

#[test]
fn recurrent_gradients_are_the_same_bits_on_one_thread_and_three() {
    let layers =
        [("RNN", 1, ""), ("GRU", 3, ""), ("GRU", 3, ", linear_before_reset=1"), ("LSTM", 4, "")];
    for (op, gates, settings) in layers {
        let (model, feeds) = recurrent(op, gates, settings);
        let trained = ["w", "r", "b", "h"];
        let on = |threads| {
            let feeds = feeds.clone();
            with_threads(threads, || run(&model, &trained, &TapeOptions::default(), feeds).0)
        };
        assert_eq!(on(1), on(3), "{op}{settings}");
    }
}

#[test]
fn recurrent_gradients_of_layout_1_are_those_of_layout_0() {
    let swapped = |x: &Tensor| {
        let &[a, b, width] = x.shape() else { panic!("three axes") };
        let from = x.slice::<f32>();
        let row = |i: usize| &from[((i % a) * b + i / a) * width..][..width];
        let values: Vec<f32> = (0..a * b).flat_map(row).copied().collect();
        Tensor::new(&[b, a, width], &values)
    };
    for (op, gates) in [("GRU", 3), ("LSTM", 4)] {
        let (model, feeds) = recurrent(op, gates, "");
        let trained = ["w", "r", "b"];
        let plain = run(&model, &trained, &TapeOptions::default(), feeds.clone()).0;
        let (mut model, _) = recurrent(op, gates, ", layout=1");
        let initial = swapped(model.graph.constant("h").unwrap());
        model.graph.set_initializer("h", initial);
        let feeds = vec![swapped(&feeds[0])];
        let found = run(&model, &trained, &TapeOptions::default(), feeds).0;
        let output_count = model.graph.outputs.len();
        // Rows of the products over steps and items are in the same order.
        assert_eq!(found[output_count..], plain[output_count..], "{op}");
    }
}

#[test]
fn a_weight_behind_other_nodes_and_read_twice_gets_one_gradient() {
    // y = x·Wᵀ·W: with x = 1, W = 2, a = 2, y = 4, and dL/dW = y·(a + W) = 16.
    let text = "i = Identity(w)\nt = Transpose(i, perm=1,0)\na = MatMul(x, t)\ny = MatMul(a, w)";
    let model = model_of(text, &[("w", Tensor::new(&[1, 1], &[2.0_f32]))]);
    let feeds = vec![Tensor::new(&[1, 1], &[1.0_f32])];
    let (found, _) = run(&model, &["w"], &TapeOptions::default(), feeds);
    assert_eq!(found, [[4.0], [16.0]]);
}

#[test]
fn half_weights_are_trained_in_f32() {
    let text = "w16 = Cast(w, to=10)\nx16 = Cast(x, to=10)\ny = Mul(x16, w16)";
    let half = values(&[5], 1).converted(DType::F16).unwrap();
    let model = model_of(text, &[("w", half.clone())]);
    let feeds = vec![values(&[5], 2)];
    let (found, _) = run(&model, &["w"], &TapeOptions::default(), feeds.clone());
    let (x, w) = (feeds[0].slice::<f32>(), half.to_f32().unwrap());
    let y: Vec<f32> = x.iter().zip(&w).map(|(x, w)| x * w).collect();
    let dw: Vec<f32> = y.iter().zip(x).map(|(y, x)| y * x).collect();
    assert_eq!(found, [y, dw]);
}

/// A node that runs one of two branches.
fn branching(text: &str, [then, other]: [&str; 2]) -> Model {
    let mut model = model_of(text, &[("w", Tensor::new(&[2], &[1.0_f32, 3.0]))]);
    let node = model.graph.nodes.iter_mut().find(|node| node.is("If")).unwrap();
    for (name, body) in [("then_branch", then), ("else_branch", other)] {
        let mut body = graph_from_text(body);
        body.inputs.clear();
        *node = node.clone().with_attribute(name, AttributeValue::Graph(Box::new(body)));
    }
    model
}

#[test]
fn bodies_beside_the_gradients_way_run() {
    let text = "c: bool[]\nx: f32[2]\ns = If(c)\na = Mul(s, w)\ny = Mul(a, x)";
    let model = branching(text, ["t = Add(x, x)", "e = Neg(x)"]);
    for (condition, scale) in [(true, 2.0), (false, -1.0)] {
        let feeds = vec![Tensor::from_bools(&[], &[condition]), Tensor::new(&[2], &[1.0_f32, 2.0])];
        let (found, _) = run(&model, &["w"], &TapeOptions::default(), feeds);
        // y = scale·x²·w, and dL/dw = y·scale·x².
        assert_eq!(found[0], [scale, scale * 12.0]);
        assert_eq!(found[1], [scale * scale, scale * scale * 48.0]);
    }
}

#[test]
fn a_node_without_gradient_is_named_with_what_to_freeze() {
    let text = "c: bool[]\nx: f32[2]\nv = Mul(w, x)\ny = If(c)";
    let model = branching(text, ["t = Add(v, v)", "e = Neg(v)"]);
    let error = Tape::new(&model, &names(&["w"]), &TapeOptions::default()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "If (node `y`) has no gradient; through its input `v` it lies between `w` and the loss"
    );
    assert!(error.hint().starts_with("freeze `w`"), "{}", error.hint());
}

#[test]
fn a_node_without_gradient_that_the_loss_does_not_hear_is_no_error() {
    // Indices are no floats: nothing flows back through them.
    let text = "v = Mul(w, x)\ni = ArgMax(v, axis=0, keepdims=0)\ng = Gather(u, i)\n\
                y = Mul(g, w)";
    let weights = [("w", values(&[3], 1)), ("u", values(&[3], 2))];
    let model = model_of(text, &weights);
    let (found, _) = run(&model, &["w"], &TapeOptions::default(), vec![values(&[3], 3)]);
    assert!(found[1].iter().all(|x| x.is_finite()));
}

#[test]
fn the_first_value_that_is_no_number_is_named() {
    let text = "l = Log(x)\nm = Mul(l, w)\ny = Neg(m)";
    let model = model_of(text, &[("w", values(&[2], 1))]);
    let tape = Tape::new(&model, &names(&["w"]), &TapeOptions::default()).unwrap();
    let pool = Pool::default();
    let variables = variables(&tape, &model);
    let look = |x: &[f32]| {
        let gradients = |outputs: &[Tensor]| Ok(outputs.iter().cloned().map(Some).collect());
        let feeds = vec![Tensor::new(&[2], x)];
        let found =
            tape.first_not_finite(&variables, feeds, StepContext::default(), gradients, &pool);
        found.unwrap()
    };
    assert_eq!(look(&[1.0, 2.0]), None);
    let found = look(&[1.0, -1.0]).unwrap();
    assert_eq!((found.tensor.as_str(), found.at), ("l", 1));
    assert!(matches!(found.when, When::Forward { .. }));
    let found = look(&[f32::NAN, 1.0]).unwrap();
    assert_eq!(found.to_string(), "`x` holds NaN at 0 before the step");
    // ln 0 = −∞, as a mask may be; what is made of it is +∞, and so is the gradient.
    assert!(look(&[0.0, 1.0]).is_some_and(|found| found.tensor == "y" && found.value > 0.0));
}

#[test]
fn nothing_to_train_is_an_error() {
    let model = model_of("v = Mul(w, x)\ny = ArgMax(v)", &[("w", values(&[3], 1))]);
    let error = Tape::new(&model, &names(&["w"]), &TapeOptions::default()).err().unwrap();
    assert!(matches!(error, TrainError::NothingToTrain { .. }));
}
