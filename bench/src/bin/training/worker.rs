//! attar's side: the models, their data, and the steps.

use std::error::Error;
use std::io::{BufRead, Write};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use attar::Bindings;
use attar_graph::{Dim, Graph, Model, Node, Value};
use attar_import::new_model;
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::{DType, Tensor};
use attar_train::{Batch, Choice, Schedule, Targets, Trainer, TrainerOptions};

/// What is trained.
pub(super) struct Case {
    pub(super) name: &'static str,
    architecture: &'static str,
    options: &'static [(&'static str, &'static str)],
    batch: usize,
    /// Tokens of a text.
    length: usize,
    /// What it learns: one of these many classes, or a vector of this size.
    target: Target,
    optimizer: &'static str,
}

enum Target {
    Classes(u32),
    Vector(usize),
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "encoder",
        architecture: "bert",
        options: &[("normalize", "false"), ("dropout", "0")],
        batch: 16,
        length: 32,
        target: Target::Vector(384),
        optimizer: "adamw",
    },
    Case {
        name: "cnn",
        architecture: "mobilenet_v2",
        options: &[],
        batch: 64,
        length: 0,
        target: Target::Classes(10),
        optimizer: "sgd",
    },
    recurrent("lstm"),
    recurrent("gru"),
];

/// A text classifier of two layers; the architecture has the case's name.
const fn recurrent(name: &'static str) -> Case {
    Case {
        name,
        architecture: name,
        options: &[
            ("layers", "2"),
            ("hidden", "256"),
            ("embedding", "256"),
            ("bidirectional", "false"),
            ("pooling", "last"),
            ("dropout", "0"),
        ],
        batch: 32,
        length: 64,
        target: Target::Classes(2),
        optimizer: "adamw",
    }
}

/// Rows of the tables that tokens are drawn from.
const TOKENS: usize = 10_000;

/// Answers as [`super::process`] says.
pub(super) fn serve(case: &str, threads: usize) -> Result<(), Box<dyn Error>> {
    let found = CASES.iter().find(|known| known.name == case);
    let case = found.ok_or_else(|| format!("there is no case `{case}`"))?;
    let threads = NonZeroUsize::new(threads).ok_or("there must be a thread")?;
    let resident_before = memory_mb("VmRSS:");
    let text = |&(key, value): &(&str, &str)| (key.to_string(), value.to_string());
    let options: Vec<(String, String)> = case.options.iter().map(text).collect();
    let model = new_model(case.architecture, &options)?.model;
    let batch = case.data(&model);
    let mac_count = macs(&model, case);
    let mut trainer = case.trainer(&model, threads)?;
    let count = |name: &String| model.graph.constant(name).map_or(0, Tensor::element_count);
    // Running statistics do not count: PyTorch has them apart.
    let is_weight = |name: &&String| !name.contains(".running_");
    let parameters: usize = trainer.trained().iter().filter(is_weight).map(count).sum();
    drop(model);
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{parameters} {mac_count} {resident_before}")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["steps", seconds] => {
                let until = Instant::now() + Duration::from_secs_f64(seconds.parse()?);
                let mut times = Vec::new();
                while times.is_empty() || Instant::now() < until {
                    let start = Instant::now();
                    let outcome = trainer.step(vec![batch.clone()], RATE)?;
                    times.push(format!("{:.4}", start.elapsed().as_secs_f64() * 1e3));
                    if !outcome.loss.is_finite() {
                        return Err(format!("the loss is {}", outcome.loss).into());
                    }
                }
                writeln!(stdout, "{}", times.join(" "))?;
            }
            ["peak"] => writeln!(stdout, "{:.2}", peak_gflops(threads)?)?,
            ["end"] => {
                writeln!(stdout, "{:.1}", memory_mb("VmHWM:"))?;
                break;
            }
            other => return Err(format!("asked {other:?}").into()),
        }
    }
    Ok(())
}

/// Small, so that the loss stays finite however long it is trained on one batch.
const RATE: f64 = 1e-4;

impl Case {
    fn data(&self, model: &Model) -> Batch {
        let feed = |input: &Value| {
            let tensor = match input.name.as_str() {
                "image" => noise(&[self.batch, 3, 32, 32]),
                "input_ids" => {
                    let id = |i: usize| (i * 7919 % TOKENS) as i64;
                    let ids: Vec<i64> = (0..self.batch * self.length).map(id).collect();
                    Tensor::new(&[self.batch, self.length], &ids)
                }
                _ => {
                    Tensor::new(&[self.batch, self.length], &vec![1_i64; self.batch * self.length])
                }
            };
            (input.name.clone(), tensor)
        };
        let targets = match self.target {
            Target::Classes(count) => {
                Targets::Classes((0..self.batch as u32).map(|i| i * 7 % count).collect())
            }
            Target::Vector(size) => Targets::Values(noise(&[self.batch, size])),
        };
        let feeds = model.graph.inputs.iter().map(feed).collect();
        Batch { feeds, targets, example_count: self.batch }
    }

    fn trainer(&self, model: &Model, threads: NonZeroUsize) -> Result<Trainer, Box<dyn Error>> {
        let loss = match self.target {
            Target::Classes(_) => "cross-entropy",
            Target::Vector(_) => "mse",
        };
        let mut optimizer = Choice::new(self.optimizer);
        if self.optimizer == "sgd" {
            optimizer = optimizer.with("momentum", 0.9);
        }
        let mut options =
            TrainerOptions::new(Choice::new(loss), optimizer, Schedule::constant(RATE));
        options.machine.threads = threads;
        Ok(Trainer::new(model, options)?)
    }
}

/// Products of a forward run.
fn macs(model: &Model, case: &Case) -> f64 {
    let mut bindings = Bindings::new();
    bindings.insert("batch".into(), case.batch as i64);
    bindings.insert("sequence".into(), case.length as i64);
    attar::inspect(model, &bindings).macs as f64
}

fn noise(shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let value = |i: usize| (i * 7919 % 100_003) as f32 / 50_001.5 - 1.0;
    Tensor::new(shape, &(0..count).map(value).collect::<Vec<f32>>())
}

/// The rate of a large product, the best of several.
fn peak_gflops(threads: NonZeroUsize) -> Result<f64, Box<dyn Error>> {
    const SIZE: usize = 1024;
    let mut graph = Graph { name: "product".into(), ..Graph::default() };
    graph.inputs.push(Value::tensor("x", DType::F32, vec![Dim::from(SIZE), Dim::from(SIZE)]));
    graph.set_initializer("w", noise(&[SIZE, SIZE]));
    graph.nodes.push(Node::new("MatMul", "product", &["x", "w"], &["y"]));
    graph.outputs.push(Value::tensor("y", DType::F32, vec![Dim::Unknown; 2]));
    let opsets = [(String::new(), 17)].into_iter().collect();
    let model = Model { ir_version: 8, opsets, graph, ..Model::default() };
    let mut session = Builtin.load(&model, &RunOptions { threads, observed: Vec::new() })?;
    let x = noise(&[SIZE, SIZE]);
    let mut best_s = f64::INFINITY;
    for _ in 0..20 {
        let start = Instant::now();
        session.run(&[("x", &x)])?;
        best_s = best_s.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (SIZE as f64).powi(3) / best_s / 1e9)
}

/// A line of this process's status, in MB; NaN where there is none.
fn memory_mb(line: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|text| text.strip_prefix(line));
    let kb = found.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kb.map_or(f64::NAN, |kb| kb * 1024.0 / 1e6)
}
