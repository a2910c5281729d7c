//! Fused layers beside plain loops over levels, in f64.

use attar_graph::Model;
use attar_graph::testing::graph_from_text;
use attar_tensor::Tensor;

use crate::fuse::fuse_for_runtime;
use crate::{Datum, Pool, Program};

const INPUT: usize = 5;
const HIDDEN: usize = 19;
const STEPS: usize = 7;
const BATCH: usize = 3;
const X_SCALE: f32 = 1.0 / 100.0;
const X_ZERO: u8 = 120;

/// Operator, gates and attributes.
const LAYERS: [(&str, usize, &str); 5] = [
    ("RNN", 1, ""),
    ("GRU", 3, ""),
    ("GRU", 3, ", linear_before_reset=1"),
    ("LSTM", 4, ""),
    ("LSTM", 4, ", clip=0.9, input_forget=1"),
];

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 31 + seed) * 7919 % 1009) as f32 / 1009.0 - 0.5).collect()
}

fn levels(count: usize, seed: usize) -> Vec<i8> {
    numbers(count, seed).into_iter().map(|x| (x * 254.0).round() as i8).collect()
}

fn scales(count: usize) -> Vec<f32> {
    (0..count).map(|row| 0.002 + 0.0004 * (row % 5) as f32).collect()
}

/// Both directions, their weights dequantized and reshaped.
fn model(op: &str, gates: usize, settings: &str) -> Model {
    let outputs = if op == "LSTM" { "y, h, c" } else { "y, h" };
    let states = if op == "LSTM" { "l, h0, c0" } else { "l, h0" };
    let mut graph = graph_from_text(&format!(
        "q = QuantizeLinear(x, xs, xz)\nd = DequantizeLinear(q, xs, xz)\n\
         wd = DequantizeLinear(w, ws, z, axis=0)\nwr = Reshape(wd, wshape)\n\
         rd = DequantizeLinear(r, rs, z, axis=0)\nrr = Reshape(rd, rshape)\n\
         {outputs} = {op}(d, wr, rr, b, {states}, direction=bidirectional{settings})"
    ));
    let rows = 2 * gates * HIDDEN;
    let shape = |depth: usize| [2, (rows / 2) as i64, depth as i64];
    for (name, tensor) in [
        ("xs", Tensor::scalar(X_SCALE)),
        ("xz", Tensor::scalar(X_ZERO)),
        ("w", Tensor::new(&[rows, INPUT], &levels(rows * INPUT, 1))),
        ("r", Tensor::new(&[rows, HIDDEN], &levels(rows * HIDDEN, 2))),
        ("ws", Tensor::new(&[rows], &scales(rows))),
        ("rs", Tensor::new(&[rows], &scales(rows))),
        ("z", Tensor::new(&[rows], &vec![0_i8; rows])),
        ("wshape", Tensor::new(&[3], &shape(INPUT))),
        ("rshape", Tensor::new(&[3], &shape(HIDDEN))),
        ("b", Tensor::new(&[2, rows], &numbers(2 * rows, 3))),
    ] {
        graph.set_initializer(name, tensor);
        graph.inputs.retain(|input| input.name != name);
    }
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { graph, opsets, ..Model::default() }
}

struct Feeds {
    x: Vec<f32>,
    lengths: [i32; BATCH],
    h: Vec<f32>,
    c: Vec<f32>,
}

fn feeds() -> Feeds {
    Feeds {
        x: numbers(STEPS * BATCH * INPUT, 4).iter().map(|x| 2.0 * x).collect(),
        lengths: [7, 4, 6],
        h: numbers(2 * BATCH * HIDDEN, 5),
        c: numbers(2 * BATCH * HIDDEN, 6),
    }
}

/// The outputs for the items of a batch.
fn run(model: &Model, feeds: &Feeds, items: &[usize]) -> Vec<Tensor> {
    let rows = |values: &[f32], size: usize| -> Vec<f32> {
        let all = values.chunks_exact(BATCH * size);
        all.flat_map(|row| items.iter().flat_map(|&i| &row[i * size..][..size])).copied().collect()
    };
    let batch = items.len();
    let lengths: Vec<i32> = items.iter().map(|&item| feeds.lengths[item]).collect();
    let given = model.graph.inputs.iter().map(|input| match input.name.as_str() {
        "x" => Tensor::new(&[STEPS, batch, INPUT], &rows(&feeds.x, INPUT)),
        "l" => Tensor::new(&[batch], &lengths),
        "h0" => Tensor::new(&[2, batch, HIDDEN], &rows(&feeds.h, HIDDEN)),
        "c0" => Tensor::new(&[2, batch, HIDDEN], &rows(&feeds.c, HIDDEN)),
        other => panic!("an input {other}"),
    });
    let given: Vec<Datum> = given.map(Datum::Tensor).collect();
    let found = Program::new(model.clone(), &[]).unwrap().run(given, &Pool::default()).unwrap();
    found.iter().filter_map(|datum| datum.tensor().cloned()).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Levels of a state, as what they stand for.
fn rounded(h: &[f64]) -> Vec<f64> {
    h.iter().map(|h| (h * 127.0).round_ties_even().clamp(-128.0, 127.0) / 127.0).collect()
}

/// y[step, direction, item, unit] by loops.
fn reference((op, gates, settings): (&str, usize, &str), feeds: &Feeds) -> Vec<f64> {
    let rows = gates * HIDDEN;
    let (w, r) = (levels(2 * rows * INPUT, 1), levels(2 * rows * HIDDEN, 2));
    let (scales, b) = (scales(2 * rows), numbers(4 * rows, 3));
    let resets_after = settings.contains("linear_before_reset");
    let is_coupled = settings.contains("input_forget");
    let clip = |x: f64| if is_coupled { x.clamp(-0.9, 0.9) } else { x };
    let mut y = vec![0.0; STEPS * 2 * BATCH * HIDDEN];
    for (direction, item) in (0..2).flat_map(|d| (0..BATCH).map(move |item| (d, item))) {
        let state = |values: &[f32]| -> Vec<f64> {
            let at = (direction * BATCH + item) * HIDDEN;
            values[at..at + HIDDEN].iter().map(|&v| f64::from(v)).collect()
        };
        let (mut h, mut c) = (state(&feeds.h), state(&feeds.c));
        let length = feeds.lengths[item] as usize;
        for step in 0..length {
            let time = if direction == 1 { length - 1 - step } else { step };
            let x = feeds.x[(time * BATCH + item) * INPUT..][..INPUT].iter().map(|&x| {
                let level = (x / X_SCALE).round_ties_even() + f32::from(X_ZERO);
                f64::from((level.clamp(0.0, 255.0) - f32::from(X_ZERO)) * X_SCALE)
            });
            let x: Vec<f64> = x.collect();
            let dot = |levels: &[i8], row: usize, v: &[f64]| -> f64 {
                let row = direction * rows + row;
                let levels = &levels[row * v.len()..][..v.len()];
                let sum: f64 = levels.iter().zip(v).map(|(&q, v)| f64::from(q) * v).sum();
                sum * f64::from(scales[row])
            };
            let bias = |half: usize, row: usize| f64::from(b[(2 * direction + half) * rows + row]);
            let of_x = |gate: usize, unit: usize| {
                let row = gate * HIDDEN + unit;
                dot(&w, row, &x) + bias(0, row)
            };
            let of_h = |gate: usize, unit: usize, h: &[f64]| {
                let row = gate * HIDDEN + unit;
                dot(&r, row, h) + bias(1, row)
            };
            let q = rounded(&h);
            let sum = |gate: usize, unit: usize| clip(of_x(gate, unit) + of_h(gate, unit, &q));
            let next: Vec<f64> = match op {
                "RNN" => (0..HIDDEN).map(|unit| sum(0, unit).tanh()).collect(),
                "LSTM" => (0..HIDDEN)
                    .map(|unit| {
                        let [i, o] = [0, 1].map(|gate| sigmoid(sum(gate, unit)));
                        let f = if is_coupled { 1.0 - i } else { sigmoid(sum(2, unit)) };
                        c[unit] = f * c[unit] + i * sum(3, unit).tanh();
                        o * c[unit].tanh()
                    })
                    .collect(),
                _ => {
                    let z: Vec<f64> = (0..HIDDEN).map(|unit| sigmoid(sum(0, unit))).collect();
                    let reset: Vec<f64> = (0..HIDDEN).map(|unit| sigmoid(sum(1, unit))).collect();
                    let before: Vec<f64> = reset.iter().zip(&h).map(|(r, h)| r * h).collect();
                    let before = rounded(&before);
                    let candidate = |unit: usize| {
                        let of_h = if resets_after {
                            reset[unit] * of_h(2, unit, &q)
                        } else {
                            of_h(2, unit, &before)
                        };
                        (of_x(2, unit) + of_h).tanh()
                    };
                    (0..HIDDEN).map(|u| (1.0 - z[u]) * candidate(u) + z[u] * h[u]).collect()
                }
            };
            let at = ((time * 2 + direction) * BATCH + item) * HIDDEN;
            y[at..at + HIDDEN].copy_from_slice(&next);
            h = next;
        }
    }
    y
}

fn fused(op: &str, gates: usize, settings: &str) -> Model {
    let mut model = model(op, gates, settings);
    fuse_for_runtime(&mut model).unwrap();
    let ops: Vec<&str> = model.graph.nodes.iter().map(|node| node.op_type.as_str()).collect();
    assert!(ops.contains(&format!("Quantized{op}").as_str()), "{op}{settings}: {ops:?}");
    assert!(!ops.contains(&"Reshape") && !ops.contains(&"LSTM"), "{op}{settings}: {ops:?}");
    model
}

#[test]
fn a_fused_layer_is_plain_loops_over_levels() {
    for layer @ (op, gates, settings) in LAYERS {
        let feeds = feeds();
        let found = run(&fused(op, gates, settings), &feeds, &[0, 1, 2]);
        let expected = reference(layer, &feeds);
        let found = found[0].slice::<f32>();
        assert_eq!(found.len(), expected.len());
        let differences: Vec<f64> =
            found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).collect();
        // A state within an ulp of a tie is rounded either way, and moves those after it by as much
        // as a level does.
        let near = differences.iter().filter(|&&difference| difference < 1e-5).count();
        let worst = differences.iter().fold(0.0_f64, |m, d| m.max(*d));
        let share = near as f64 / differences.len() as f64;
        assert!(share > 0.9 && worst < 0.02, "{op}{settings}: {share} within 1e-5, worst {worst}");
    }
}

#[test]
fn a_batch_item_of_levels_has_the_same_bits_alone_and_on_any_number_of_threads() {
    for (op, gates, settings) in LAYERS {
        let (model, feeds) = (fused(op, gates, settings), feeds());
        let together = run(&model, &feeds, &[0, 1, 2]);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(|| run(&model, &feeds, &[0, 1, 2])), together, "{op}{settings}");
        for item in 0..BATCH {
            let alone = run(&model, &feeds, &[item]);
            let rows = together[0].slice::<f32>().chunks_exact(BATCH * HIDDEN);
            let own: Vec<f32> =
                rows.flat_map(|row| &row[item * HIDDEN..][..HIDDEN]).copied().collect();
            assert_eq!(alone[0].slice::<f32>(), own, "{op}{settings}");
        }
    }
}

#[test]
fn a_layer_whose_states_are_not_bounded_stays_in_float() {
    let settings = ", activations=Sigmoid,Tanh,Relu,Sigmoid,Tanh,Relu";
    let mut model = model("LSTM", 4, settings);
    fuse_for_runtime(&mut model).unwrap();
    let ops: Vec<&str> = model.graph.nodes.iter().map(|node| node.op_type.as_str()).collect();
    assert!(ops.contains(&"LSTM"), "{ops:?}");
}
