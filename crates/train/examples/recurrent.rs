//! Time of one training step of stacked recurrent layers, and the floor beside it: the products of
//! the step at the rate of one large matrix product.
//!
//! `cargo run --release -p attar-train --example recurrent -- [--layer LSTM] [--threads N]
//! [--hidden 256] [--steps 64] [--batch 32] [--layers 2] [--seconds S]`
#![allow(clippy::print_stdout)]

use std::time::Instant;

use attar_graph::{Dim, Graph, Model, Node, Value};
use attar_ops::{Flow, Pool};
use attar_tensor::{DType, Tensor};
use attar_train::{StepContext, Tape, TapeOptions};

struct Arguments {
    layer: String,
    threads: usize,
    hidden: usize,
    steps: usize,
    batch: usize,
    layers: usize,
    seconds: f64,
}

fn arguments() -> Result<Arguments, Box<dyn std::error::Error>> {
    let mut parsed = Arguments {
        layer: "LSTM".into(),
        threads: 1,
        hidden: 256,
        steps: 64,
        batch: 32,
        layers: 2,
        seconds: 5.0,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--layer" => parsed.layer = value,
            "--threads" => parsed.threads = value.parse()?,
            "--hidden" => parsed.hidden = value.parse()?,
            "--steps" => parsed.steps = value.parse()?,
            "--batch" => parsed.batch = value.parse()?,
            "--layers" => parsed.layers = value.parse()?,
            "--seconds" => parsed.seconds = value.parse()?,
            _ => return Err(format!("there is no option `{word}`").into()),
        }
    }
    Ok(parsed)
}

fn values(shape: &[usize], scale: f32) -> Tensor {
    let count = shape.iter().product();
    let value = |i: usize| ((i * 7919 % 100_003) as f32 / 50_001.5 - 1.0) * scale;
    Tensor::new(shape, &(0..count).map(value).collect::<Vec<f32>>())
}

impl Arguments {
    fn gates(&self) -> usize {
        match self.layer.as_str() {
            "RNN" => 1,
            "GRU" => 3,
            _ => 4,
        }
    }

    fn model(&self) -> Model {
        let (hidden, rows) = (self.hidden, self.gates() * self.hidden);
        let scale = 1.0 / (hidden as f32).sqrt();
        let mut graph = Graph { name: "layers".into(), ..Graph::default() };
        let dims = [self.steps, self.batch, hidden].map(Dim::from).to_vec();
        graph.inputs.push(Value::tensor("x0", DType::F32, dims));
        graph.set_initializer("axis", Tensor::new(&[1], &[1_i64]));
        graph.set_initializer("first", Tensor::new(&[1], &[0_i64]));
        for layer in 0..self.layers {
            let name = |of: &str| format!("{of}{layer}");
            graph.set_initializer(name("w"), values(&[1, rows, hidden], scale));
            graph.set_initializer(name("r"), values(&[1, rows, hidden], scale));
            graph.set_initializer(name("b"), values(&[1, 2 * rows], scale));
            let [x, w, r, b, y, h] = ["x", "w", "r", "b", "y", "h"].map(name);
            let is_last = layer + 1 == self.layers;
            let outputs = if is_last { ["", h.as_str()] } else { [y.as_str(), ""] };
            let mut node = Node::new(&self.layer, &name("layer"), &[&x, &w, &r, &b], &outputs)
                .with_attribute("hidden_size", hidden as i64);
            if self.layer == "GRU" {
                node = node.with_attribute("linear_before_reset", 1_i64);
            }
            graph.nodes.push(node);
            let (from, axis, to) = if is_last {
                (h, "first", "last".to_string())
            } else {
                (y, "axis", format!("x{}", layer + 1))
            };
            graph.nodes.push(Node::new("Squeeze", &name("squeeze"), &[&from, axis], &[&to]));
        }
        graph.set_initializer("head", values(&[hidden, 10], scale));
        graph.nodes.push(Node::new("MatMul", "head", &["last", "head"], &["logits"]));
        graph.outputs.push(Value::tensor("logits", DType::F32, vec![Dim::Unknown; 2]));
        let opsets = [(String::new(), 17)].into_iter().collect();
        Model { ir_version: 9, opsets, graph, ..Model::default() }
    }

    /// Multiply-accumulate operations of a step: forward, and twice that backward, without dX of
    /// the first layer.
    fn macs(&self) -> f64 {
        let per_product = self.gates() * self.hidden * self.hidden * self.steps * self.batch;
        (per_product * (6 * self.layers - 1)) as f64
    }
}

/// Multiply-accumulate operations per millisecond of a large product on these threads.
fn macs_per_ms() -> Result<f64, Box<dyn std::error::Error>> {
    const SIZE: usize = 1024;
    let mut graph = Graph { name: "product".into(), ..Graph::default() };
    graph.inputs.push(Value::tensor("x", DType::F32, vec![Dim::from(SIZE), Dim::from(SIZE)]));
    graph.set_initializer("w", values(&[SIZE, SIZE], 1.0));
    graph.nodes.push(Node::new("MatMul", "product", &["x", "w"], &["y"]));
    graph.outputs.push(Value::tensor("y", DType::F32, vec![Dim::Unknown; 2]));
    let opsets = [(String::new(), 17)].into_iter().collect();
    let model = Model { ir_version: 9, opsets, graph, ..Model::default() };
    let program = attar_ops::Program::new(model, &[])?;
    let (pool, x) = (Pool::default(), values(&[SIZE, SIZE], 1.0));
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let start = Instant::now();
        program.run(vec![attar_ops::Datum::Tensor(x.clone())], &pool)?;
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok((SIZE * SIZE * SIZE) as f64 / best)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments()?;
    let threads = rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build()?;
    threads.install(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let model = arguments.model();
    let trained: Vec<String> = (model.graph.initializers.iter())
        .filter(|(_, stored)| stored.tensor.dtype() == DType::F32)
        .map(|(name, _)| name.clone())
        .collect();
    let tape = Tape::new(&model, &trained, &TapeOptions::default())?;
    let variables: Vec<Tensor> = (tape.variables().iter())
        .map(|name| model.graph.initializers[name].tensor.aligned())
        .collect();
    let pool = Pool::default();
    let x = values(&[arguments.steps, arguments.batch, arguments.hidden], 1.0);
    let mut times = [Vec::new(), Vec::new()];
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < arguments.seconds || times[0].len() < 5 {
        let begun = Instant::now();
        let recording = tape.forward(&variables, vec![x.clone()], StepContext::default(), &pool)?;
        let forward = begun.elapsed();
        let gradient = recording.outputs[0].clone();
        let mut sums: Vec<Option<Flow>> = vec![None; tape.trained().len()];
        tape.backward(&variables, recording, vec![Some(gradient)], &mut sums, &pool)?;
        for sum in sums.into_iter().flatten() {
            pool.recycle(sum.into_dense(&pool));
        }
        times[0].push(forward.as_secs_f64() * 1e3);
        times[1].push((begun.elapsed() - forward).as_secs_f64() * 1e3);
    }
    let [forward, backward] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        [times[0], times[times.len() / 2]]
    });
    let rate = macs_per_ms()?;
    let floor = arguments.macs() / rate;
    println!(
        "{} ×{}, hidden {}, {} steps, batch {}, {} thread(s): forward {:.1} ms, backward {:.1} ms \
         (least {:.1} + {:.1}); floor {floor:.1} ms at {:.1} GFLOP/s",
        arguments.layer,
        arguments.layers,
        arguments.hidden,
        arguments.steps,
        arguments.batch,
        arguments.threads,
        forward[1],
        backward[1],
        forward[0],
        backward[0],
        rate * 2.0 / 1e6,
    );
    Ok(())
}
