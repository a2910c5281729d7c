//! Cutting a channel computes what zeroing it computes: recurrent layers, attention, ONNX Runtime's
//! operators, and random graphs.

mod graphs;
mod operators;
mod random;
mod recurrent;

use attar_graph::testing::graph_from_text;
use attar_graph::{Graph, Model};
use attar_ops::MICROSOFT_DOMAIN;
use attar_tensor::{DType, Tensor};

use super::testing::check_groups;

/// What an open size is while a test runs.
const OPEN: usize = 3;

/// A model and what it is fed.
struct Case {
    model: Model,
    feeds: Vec<(String, Tensor)>,
}

/// A graph as `graph_from_text` reads it. Beside that, `w = normal[2, 3]` are drawn numbers,
/// `v = positive[3]` those above 0, `a = ints[0, -1]` are integers, and `ms.Op` is an operator of
/// ONNX Runtime.
fn case(opset: i64, text: &str) -> Case {
    let mut constants: Vec<(String, Tensor)> = Vec::new();
    let mut rest = String::new();
    for line in text.lines().map(str::trim) {
        let Some((name, tensor)) = line.split_once(" = ").and_then(|(name, right)| {
            Some((name.to_string(), constant(right, constants.len() as u64)?))
        }) else {
            rest += line;
            rest.push('\n');
            continue;
        };
        constants.push((name, tensor));
    }
    let mut graph = graph_from_text(&rest);
    for (name, tensor) in constants {
        graph.inputs.retain(|input| input.name != name);
        graph.set_initializer(name, tensor);
    }
    for node in &mut graph.nodes {
        if let Some(op_type) = node.op_type.strip_prefix("ms.") {
            node.op_type = op_type.to_string();
            node.domain = MICROSOFT_DOMAIN.into();
        }
    }
    let opsets = [(String::new(), opset), (MICROSOFT_DOMAIN.into(), 1)].into_iter().collect();
    let feeds = feeds(&graph);
    Case { model: Model { graph, opsets, ..Model::default() }, feeds }
}

fn constant(text: &str, seed: u64) -> Option<Tensor> {
    let (kind, list) = text.strip_suffix(']')?.split_once('[')?;
    let list: Vec<i64> = list
        .split(',')
        .map(str::trim)
        .filter(|x| !x.is_empty())
        .map(|x| x.parse().unwrap())
        .collect();
    let shape: Vec<usize> = list.iter().map(|&size| size as usize).collect();
    // Of a size at which values neither grow nor vanish.
    let drawn = |change: fn(f32) -> f32| {
        let values = numbers(shape.iter().product(), seed + 11);
        Tensor::new(&shape, &values.into_iter().map(change).collect::<Vec<_>>())
    };
    match kind {
        "ints" => Some(Tensor::new(&[list.len()], &list)),
        "normal" => Some(drawn(|x| x * 0.6)),
        "positive" => Some(drawn(|x| x.abs() + 0.5)),
        _ => None,
    }
}

/// Numbers for floats, and small indices for integers.
fn feeds(graph: &Graph) -> Vec<(String, Tensor)> {
    let fed = graph.inputs.iter().zip(100..).map(|(input, seed)| {
        let shape: Vec<usize> = input
            .shape()
            .unwrap()
            .iter()
            .map(|dim| dim.known().map_or(OPEN, |size| size as usize))
            .collect();
        let count: usize = shape.iter().product();
        let tensor = match input.dtype().unwrap() {
            DType::I64 => {
                Tensor::new(&shape, &(0..count as i64).map(|i| i % 4).collect::<Vec<_>>())
            }
            DType::I32 => {
                Tensor::new(&shape, &(0..count as i32).map(|i| i % 4).collect::<Vec<_>>())
            }
            _ => Tensor::new(&shape, &numbers(count, seed)),
        };
        (input.name.clone(), tensor)
    });
    fed.collect()
}

/// Channels at both ends and between, all of which have an effect.
fn check(what: &str, case: &Case) -> Vec<String> {
    let (found, dead) = check_groups(what, &case.model, &case.feeds, &[0.0, 0.4, 1.0]);
    assert!(dead.is_empty(), "{what}: channels without effect: {dead:?}");
    found
}

/// Pseudo-random numbers from −3 to 3, most of them small; the same for the same seed.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 24) as f32
    };
    (0..count).map(|_| (uniform() + uniform() + uniform() - 1.5) * 2.0).collect()
}
