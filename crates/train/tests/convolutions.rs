//! A convolutional network trains alike on any number of threads, fused or as it is written.
#![allow(clippy::unwrap_used)] // a test may fail where it stands

use std::collections::BTreeMap;

use attar_graph::Model;
use attar_graph::testing::graph_from_text;
use attar_ops::Pool;
use attar_tensor::Tensor;
use attar_train::{StepContext, Tape, TapeOptions};

const NETWORK: &str = "x: f32[8, 3, 33, 32]\na = Conv(x, w0, pads=1,1,1,1)
    b = BatchNormalization(a, s0, o0, m0, v0)\nc = Clip(b, low, high)\nd = Conv(c, w1)
    e = BatchNormalization(d, s1, o1, m1, v1)\nf = Clip(e, low, high)
    g = Conv(f, w2, group=96, pads=1,1,1,1, strides=2,2)\nh = BatchNormalization(g, s1, o1, m2, v2)
    i = HardSwish(h)\nj = Conv(i, w3)\nk = BatchNormalization(j, s3, o3, m3, v3)
    l = Conv(k, w4, pads=1,1,1,1)\nn = Relu(l)\np = Add(n, k)\nq = Dropout(p, half)
    r = GlobalAveragePool(q)\nlow = [0]\nhigh = [6]\nhalf = [0.5]\ny = Mul(r, r)";

const SHAPES: &[(&str, &[usize])] = &[
    ("w0", &[32, 3, 3, 3]),
    ("w1", &[96, 32, 1, 1]),
    ("w2", &[96, 1, 3, 3]),
    ("w3", &[24, 96, 1, 1]),
    ("w4", &[24, 24, 3, 3]),
    ("s0", &[32]),
    ("o0", &[32]),
    ("s1", &[96]),
    ("o1", &[96]),
    ("s3", &[24]),
    ("o3", &[24]),
    ("m0", &[32]),
    ("m1", &[96]),
    ("m2", &[96]),
    ("m3", &[24]),
    ("v0", &[32]),
    ("v1", &[96]),
    ("v2", &[96]),
    ("v3", &[24]),
];

fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product();
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 0.99;
    Tensor::new(shape, &(0..count).map(value).collect::<Vec<f32>>())
}

fn network(drops: bool) -> (Model, Vec<String>) {
    let kept = NETWORK.replace("Dropout(p, half)", "Identity(p)");
    let mut graph = graph_from_text(if drops { NETWORK } else { &kept });
    for output in &mut graph.outputs {
        output.value_type = None;
    }
    for bound in ["low", "high", "half"] {
        let Some(_) = graph.initializers.get(bound) else { continue };
        let value = graph.initializers[bound].tensor.slice::<f32>()[0];
        graph.set_initializer(bound, Tensor::scalar(value));
    }
    let mut trained = Vec::new();
    for (seed, (name, shape)) in SHAPES.iter().enumerate() {
        let is_running = name.starts_with(['m', 'v']);
        let tensor = numbers(shape, seed);
        graph.inputs.retain(|input| input.name != *name);
        graph.set_initializer(*name, tensor);
        if !is_running {
            trained.push((*name).to_string());
        }
    }
    let mut model = Model { ir_version: 9, graph, ..Model::default() };
    model.opsets.insert(String::new(), 17);
    (model, trained)
}

/// Gradients and new running statistics, by name.
fn step(drops: bool, unfused: bool, threads: usize) -> BTreeMap<String, Tensor> {
    let (model, trained) = network(drops);
    let options = TapeOptions { unfused, ..TapeOptions::default() };
    let tape = Tape::new(&model, &trained, &options).unwrap();
    let content = |name: &String| model.graph.initializers[name].tensor.aligned();
    let variables: Vec<Tensor> = tape.variables().iter().map(content).collect();
    let pool = Pool::default();
    let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    threads.install(|| {
        let feeds = vec![numbers(&[8, 3, 33, 32], 77)];
        let context = StepContext { seed: 5 };
        let mut recording = tape.forward(&variables, feeds, context, &pool).unwrap();
        let updates = std::mem::take(&mut recording.updates);
        let gradients = recording.outputs.iter().map(|y| Some(numbers(y.shape(), 3))).collect();
        let mut sums = vec![None; trained.len()];
        tape.backward(&variables, recording, gradients, &mut sums, &pool).unwrap();
        let flows = sums.into_iter().map(|sum| sum.unwrap().into_dense(&pool));
        let names = tape.trained().iter().cloned();
        let mut found: BTreeMap<String, Tensor> = names.zip(flows).collect();
        found.extend(updates.into_iter().map(|(at, new)| (tape.variables()[at].clone(), new)));
        found
    })
}

#[test]
fn gradients_and_statistics_do_not_depend_on_threads() {
    let (one, two, three) = (step(true, false, 1), step(true, false, 2), step(true, false, 3));
    assert_eq!(one.len(), SHAPES.len());
    assert!(one == two && one == three);
}

#[test]
fn fused_channels_last_gradients_are_those_of_the_graph_as_written() {
    // Without Dropout, which draws by place: places differ between layouts.
    let (fused, plain) = (step(false, false, 2), step(false, true, 2));
    for ((name, found), (_, expected)) in fused.into_iter().zip(plain) {
        let (found, expected) = (found.slice::<f32>(), expected.slice::<f32>());
        let scale = expected.iter().fold(1e-6, |most: f32, x| most.max(x.abs()));
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-4 * scale, "{name} differs by {worst} of {scale}");
    }
}
