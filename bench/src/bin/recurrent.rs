//! Time of recurrent layers on `builtin` over that on ONNX Runtime, in alternating runs, and the
//! share of it that no implementation could save.
//!
//! `cargo run --release -p attar-bench --bin recurrent -- [--threads N] [--seconds S]
//! [--layers LSTM,GRU,RNN] [--hidden 64,128,256,512] [--batch 1,8,32] [--steps 16,200]
//! [--direction bidirectional]`
//!
//! The floor is the greater of two times, both measured here: that of all products at the rate of
//! one large matrix product, and that of reading the recurrent weights once a step at the rate at
//! which a buffer of their size is read.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use attar_bench::difference;
use attar_evaluate::measure;
use attar_graph::{Dim, Graph, Model, Node, Value};
use attar_runtime::{Builtin, Ort, RunOptions, Runtime, Session};
use attar_tensor::{DType, Tensor};

struct Arguments {
    threads: NonZeroUsize,
    seconds: f64,
    layers: Vec<String>,
    hidden: Vec<usize>,
    batch: Vec<usize>,
    steps: Vec<usize>,
    direction: String,
}

fn arguments() -> Result<Arguments, Box<dyn std::error::Error>> {
    let mut parsed = Arguments {
        threads: NonZeroUsize::MIN,
        seconds: 0.3,
        layers: ["LSTM", "GRU", "RNN"].map(String::from).to_vec(),
        hidden: vec![64, 128, 256, 512],
        batch: vec![1, 8, 32],
        steps: vec![16, 200],
        direction: "forward".into(),
    };
    let sizes = |text: String| text.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--threads" => parsed.threads = value.parse()?,
            "--seconds" => parsed.seconds = value.parse()?,
            "--layers" => parsed.layers = value.split(',').map(String::from).collect(),
            "--hidden" => parsed.hidden = sizes(value)?,
            "--batch" => parsed.batch = sizes(value)?,
            "--steps" => parsed.steps = sizes(value)?,
            "--direction" => parsed.direction = value,
            _ => return Err(format!("there is no option `{word}`").into()),
        }
    }
    Ok(parsed)
}

/// A layer: input and hidden of one size.
#[derive(Clone, Copy)]
struct Layer<'a> {
    op: &'a str,
    direction: &'a str,
    hidden: usize,
    batch: usize,
    steps: usize,
}

impl Layer<'_> {
    fn gates(&self) -> usize {
        match self.op {
            "RNN" => 1,
            "GRU" => 3,
            _ => 4,
        }
    }

    fn directions(&self) -> usize {
        if self.direction == "bidirectional" { 2 } else { 1 }
    }

    fn input(&self) -> Tensor {
        values(&[self.steps, self.batch, self.hidden], 1.0)
    }

    fn model(&self) -> Model {
        let Self { hidden, batch, steps, .. } = *self;
        let (directions, rows) = (self.directions(), self.gates() * hidden);
        let scale = 1.0 / (hidden as f32).sqrt();
        let mut graph = Graph { name: "layer".into(), ..Graph::default() };
        let dims = [steps, batch, hidden].map(Dim::from).to_vec();
        graph.inputs.push(Value::tensor("x", DType::F32, dims));
        graph.set_initializer("w", values(&[directions, rows, hidden], scale));
        graph.set_initializer("r", values(&[directions, rows, hidden], scale));
        graph.set_initializer("b", values(&[directions, 2 * rows], scale));
        let mut node = Node::new(self.op, "layer", &["x", "w", "r", "b"], &["y"])
            .with_attribute("hidden_size", hidden as i64)
            .with_attribute("direction", self.direction);
        if self.op == "GRU" {
            // The form that PyTorch exports.
            node = node.with_attribute("linear_before_reset", 1_i64);
        }
        graph.nodes.push(node);
        graph.outputs.push(Value::tensor("y", DType::F32, vec![Dim::Unknown; 4]));
        model(graph)
    }

    /// Milliseconds that products and reading take at the measured rates.
    fn floor_ms(&self, macs_per_ms: f64) -> f64 {
        let weights = self.gates() * self.hidden * self.hidden * self.directions();
        let macs = (2 * weights * self.steps * self.batch) as f64;
        let bytes = (4 * weights * self.steps) as f64;
        (macs / macs_per_ms).max(bytes / bytes_per_ms(4 * weights / self.directions()))
    }
}

fn model(graph: Graph) -> Model {
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { ir_version: 9, opsets, graph, ..Model::default() }
}

fn values(shape: &[usize], scale: f32) -> Tensor {
    let count = shape.iter().product();
    let value = |i: usize| ((i * 7919 % 100_003) as f32 / 50_001.5 - 1.0) * scale;
    Tensor::new(shape, &(0..count).map(value).collect::<Vec<f32>>())
}

/// The rate at which a buffer is read again and again.
fn bytes_per_ms(size_bytes: usize) -> f64 {
    const LANES: usize = 64;
    let buffer = vec![1_u64; size_bytes / 8];
    let mut best = f64::INFINITY;
    let mut sums = [0_u64; LANES];
    for _ in 0..20 {
        let start = Instant::now();
        for chunk in black_box(&buffer).as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                sums[lane] ^= chunk[lane];
            }
        }
        black_box(&mut sums);
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    size_bytes as f64 / best
}

/// The rate of a large product on one thread of `builtin`.
fn macs_per_ms(options: &RunOptions) -> Result<f64, Box<dyn std::error::Error>> {
    const SIZE: usize = 512;
    let mut graph = Graph { name: "product".into(), ..Graph::default() };
    graph.inputs.push(Value::tensor("x", DType::F32, vec![Dim::from(SIZE), Dim::from(SIZE)]));
    graph.set_initializer("w", values(&[SIZE, SIZE], 1.0));
    graph.nodes.push(Node::new("MatMul", "product", &["x", "w"], &["y"]));
    graph.outputs.push(Value::tensor("y", DType::F32, vec![Dim::Unknown; 2]));
    let mut session = Builtin.load(&model(graph), options)?;
    let feeds = [vec![("x".to_string(), values(&[SIZE, SIZE], 1.0))]];
    let mut in_turn: [&mut dyn Session; 1] = [session.as_mut()];
    let times = measure(&mut in_turn, &feeds, 1, 20, Duration::from_millis(300))?;
    Ok((SIZE * SIZE * SIZE) as f64 / times[0].p50_ms)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments()?;
    let runtimes: [&dyn Runtime; 2] = [&Builtin, &Ort::find(None)?];
    let options = RunOptions { threads: arguments.threads, observed: Vec::new() };
    let rate = macs_per_ms(&options)?;
    println!(
        "{} thread(s), {}; medians of alternating runs",
        arguments.threads, arguments.direction
    );
    println!("a large product: {:.1} GFLOP/s", rate * 2.0 / 1e6);
    println!(
        "{:5} {:>6} {:>5} {:>5} {:>11} {:>9} {:>6} {:>7} {:>9}",
        "layer", "hidden", "batch", "steps", "builtin ms", "ort ms", "ratio", "floor", "differs"
    );
    let mut ratios = Vec::new();
    for op in &arguments.layers {
        for &hidden in &arguments.hidden {
            for &batch in &arguments.batch {
                for &steps in &arguments.steps {
                    let direction = arguments.direction.as_str();
                    let layer = Layer { op, direction, hidden, batch, steps };
                    ratios.push(report(&layer, runtimes, &options, arguments.seconds, rate)?);
                }
            }
        }
    }
    let mean =
        (ratios.iter().map(|ratio: &f64| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
    let worst = ratios.iter().copied().fold(0.0, f64::max);
    println!("ratio: geometric mean {mean:.2}, worst {worst:.2}");
    Ok(())
}

/// Measures one layer, prints its line and returns the ratio.
fn report(
    layer: &Layer,
    runtimes: [&dyn Runtime; 2],
    options: &RunOptions,
    seconds: f64,
    macs_per_ms: f64,
) -> Result<f64, Box<dyn std::error::Error>> {
    let model = layer.model();
    let [mut builtin, mut ort] =
        [runtimes[0].load(&model, options)?, runtimes[1].load(&model, options)?];
    let x = layer.input();
    let differs = difference(&builtin.run(&[("x", &x)])?, &ort.run(&[("x", &x)])?);
    let feeds = vec![vec![("x".to_string(), x)]; 2];
    let mut in_turn: [&mut dyn Session; 2] = [builtin.as_mut(), ort.as_mut()];
    let time = Duration::from_secs_f64(seconds);
    let times = measure(&mut in_turn, &feeds, layer.batch, 10, time)?;
    let ratio = times[0].p50_ms / times[1].p50_ms;
    println!(
        "{:5} {:>6} {:>5} {:>5} {:>11.3} {:>9.3} {:>6.2} {:>6.0}% {:>9.1e}",
        layer.op,
        layer.hidden,
        layer.batch,
        layer.steps,
        times[0].p50_ms,
        times[1].p50_ms,
        ratio,
        layer.floor_ms(macs_per_ms) / times[0].p50_ms * 100.0,
        differs
    );
    Ok(ratio)
}
