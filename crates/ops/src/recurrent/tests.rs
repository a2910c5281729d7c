//! What ONNX Runtime cannot be asked: `layout` 1, f64, threads, batches, inputs that do not fit.

use attar_graph::Model;
use attar_graph::testing::graph_from_text;
use attar_tensor::{DType, Tensor};

use crate::{Datum, Pool, Program, ProgramError};

const LAYERS: [(&str, usize, &str); 5] = [
    ("RNN", 1, ""),
    ("GRU", 3, ""),
    ("GRU", 3, ", linear_before_reset=1"),
    ("LSTM", 4, ""),
    ("LSTM", 4, ", clip=0.5, input_forget=1"),
];

fn values(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product();
    let value = |i: usize| (((i + seed) * 7919 % 1009) as f32 / 1009.0 - 0.5) * 1.2;
    Tensor::new(shape, &(0..count).map(value).collect::<Vec<f32>>())
}

fn weights(gates: usize, input: usize, hidden: usize) -> Vec<Tensor> {
    let rows = gates * hidden;
    vec![values(&[2, rows, input], 1), values(&[2, rows, hidden], 2), values(&[2, 2 * rows], 3)]
}

fn try_run(op: &str, settings: &str, feeds: Vec<Tensor>) -> Result<Vec<Tensor>, ProgramError> {
    let outputs = if op == "LSTM" { "y, h, c" } else { "y, h" };
    let inputs = ["x", "w", "r", "b", "l", "hi"][..feeds.len()].join(", ");
    let text = format!("{outputs} = {op}({inputs}, direction=bidirectional{settings})");
    let opsets = [(String::new(), 14)].into_iter().collect();
    let model = Model { graph: graph_from_text(&text), opsets, ..Model::default() };
    let feeds = feeds.into_iter().map(Datum::Tensor).collect();
    let found = Program::new(model, &[])?.run(feeds, &Pool::default())?;
    Ok(found.iter().filter_map(|datum| datum.tensor().cloned()).collect())
}

fn run(op: &str, settings: &str, feeds: Vec<Tensor>) -> Vec<Tensor> {
    try_run(op, settings, feeds).unwrap()
}

/// Swaps the first two axes of [a, b, …].
fn swapped(x: &Tensor) -> Tensor {
    let mut shape = x.shape().to_vec();
    let rest: usize = shape[2..].iter().product();
    let (a, b) = (shape[0], shape[1]);
    let from = x.slice::<f32>();
    let row = |i: usize| &from[((i % a) * b + i / a) * rest..][..rest];
    let values: Vec<f32> = (0..a * b).flat_map(row).copied().collect();
    shape.swap(0, 1);
    Tensor::new(&shape, &values)
}

/// [steps, directions, batch, hidden] as [batch, steps, directions, hidden].
fn batch_first(y: &Tensor) -> Vec<f32> {
    let &[steps, directions, batch, hidden] = y.shape() else { panic!("four sizes") };
    let rows = y.slice::<f32>().chunks_exact(hidden).collect::<Vec<_>>();
    let mut values = Vec::new();
    for item in 0..batch {
        for index in 0..steps * directions {
            values.extend_from_slice(rows[index * batch + item]);
        }
    }
    values
}

#[test]
fn layout_1_is_layout_0_with_the_batch_first() {
    for (op, gates, settings) in LAYERS {
        let lengths = Tensor::new(&[3], &[5_i32, 2, 4]);
        let (x, initial) = (values(&[5, 3, 6], 0), values(&[2, 3, 9], 4));
        let mut feeds = vec![x.clone()];
        feeds.extend(weights(gates, 6, 9));
        feeds.extend([lengths, initial.clone()]);
        let plain = run(op, settings, feeds.clone());
        (feeds[0], feeds[5]) = (swapped(&x), swapped(&initial));
        let found = run(op, &format!("{settings}, layout=1"), feeds);
        assert_eq!(found[0].slice::<f32>(), batch_first(&plain[0]), "{op}{settings}");
        for (found, plain) in found[1..].iter().zip(&plain[1..]) {
            assert_eq!(*found, swapped(plain), "{op}{settings}");
        }
    }
}

#[test]
fn f64_is_computed_in_f64_and_agrees_with_f32() {
    for (op, gates, settings) in LAYERS {
        let mut feeds = vec![values(&[7, 3, 6], 0)];
        feeds.extend(weights(gates, 6, 9));
        let narrow = run(op, settings, feeds.clone());
        let wide = feeds.iter().map(|feed| feed.converted(DType::F64).unwrap()).collect();
        for (wide, narrow) in run(op, settings, wide).iter().zip(&narrow) {
            assert_eq!(wide.dtype(), DType::F64);
            for (wide, narrow) in wide.slice::<f64>().iter().zip(narrow.slice::<f32>()) {
                assert!((wide - f64::from(*narrow)).abs() < 2e-6, "{op}{settings}");
            }
        }
    }
}

#[test]
fn a_batch_item_has_the_same_bits_alone_and_on_any_number_of_threads() {
    for (op, gates, settings) in LAYERS {
        let (steps, batch, input, hidden) = (24, 11, 40, 48);
        let x = values(&[steps, batch, input], 0);
        let mut feeds = vec![x.clone()];
        feeds.extend(weights(gates, input, hidden));
        let on = |threads: usize, feeds: Vec<Tensor>| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(op, settings, feeds))
        };
        let together = on(1, feeds.clone());
        assert_eq!(on(3, feeds.clone()), together, "{op}{settings}");
        for item in [0, 6, 10] {
            let own = x.slice::<f32>().chunks_exact(batch * input);
            let own = own.flat_map(|row| &row[item * input..][..input]).copied();
            feeds[0] = Tensor::new(&[steps, 1, input], &own.collect::<Vec<f32>>());
            let alone = on(1, feeds.clone());
            let all = together[0].slice::<f32>().chunks_exact(batch * hidden);
            let all = all.flat_map(|row| &row[item * hidden..][..hidden]).copied();
            assert_eq!(alone[0].slice::<f32>(), all.collect::<Vec<f32>>(), "{op}{settings}");
        }
    }
}

#[test]
fn no_steps_leave_the_initial_state() {
    for (op, gates, settings) in LAYERS {
        let initial = values(&[2, 3, 9], 4);
        for (steps, lengths) in [(0, [0, 0, 0]), (2, [0, 0, 0])] {
            let mut feeds = vec![values(&[steps, 3, 6], 0)];
            feeds.extend(weights(gates, 6, 9));
            feeds.extend([Tensor::new(&[3], &lengths), initial.clone()]);
            let found = run(op, settings, feeds);
            assert!(found[0].slice::<f32>().iter().all(|&y| y == 0.0));
            assert_eq!(found[1], initial);
        }
    }
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let feeds =
        |x: &[usize], w: Vec<Tensor>, rest: Vec<Tensor>| [vec![values(x, 0)], w, rest].concat();
    let good = || weights(4, 6, 9);
    let lengths = |values: &[i32]| Tensor::new(&[values.len()], values);
    let cases = [
        (feeds(&[5, 3, 7], good(), vec![]), ""),
        (feeds(&[5, 3], good(), vec![]), ""),
        (feeds(&[5, 3, 6], weights(3, 6, 9), vec![]), ""),
        (feeds(&[5, 3, 6], good(), vec![lengths(&[6, 1, 1])]), ""),
        (feeds(&[5, 3, 6], good(), vec![lengths(&[-1, 1, 1])]), ""),
        (feeds(&[5, 3, 6], good(), vec![lengths(&[1, 1])]), ""),
        (feeds(&[5, 3, 6], good(), vec![lengths(&[1, 1, 1]), values(&[2, 3, 8], 0)]), ""),
        (feeds(&[5, 3, 6], good(), vec![]), ", hidden_size=10"),
        (feeds(&[5, 3, 6], good(), vec![]), ", hidden_size=-1"),
        (feeds(&[5, 3, 6], good(), vec![]), ", layout=2"),
        (feeds(&[5, 3, 6], good(), vec![]), ", clip=-1.0"),
        (feeds(&[5, 3, 0], weights(4, 0, 9), vec![]), ""),
        (feeds(&[5, 3, 6], weights(4, 6, 0), vec![]), ""),
        (feeds(&[5, 3, 6], good(), vec![]), ", activations=Tanh,Frob,Tanh,Tanh,Tanh,Tanh"),
    ];
    for (index, (feeds, settings)) in cases.into_iter().enumerate() {
        assert!(try_run("LSTM", settings, feeds).is_err(), "case {index}");
    }
}
