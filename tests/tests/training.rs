//! Networks of every kind end with the same bits on one and on two threads, and stopped and resumed
//! in the middle of an epoch: with dropout, running statistics, an average and random data.
#![allow(clippy::unwrap_used)] // a test may fail where it stands

use std::num::NonZeroUsize;

use attar_graph::{Dim, Model, Value};
use attar_tensor::{DType, Tensor};
use attar_tests::Folder;
use attar_train::{
    Batch, Checkpoints, Choice, Control, Decay, EpochReport, Monitor, Rng, Schedule, Silent,
    Source, Span, StepReport, Targets, TrainError, Trainer, TrainerOptions,
};

const CLASS_COUNT: usize = 3;
const STEP_COUNT: u64 = 100;

/// Random examples of what a model's inputs take.
struct Examples {
    inputs: Vec<Value>,
    lengths: Vec<usize>,
}

impl Examples {
    fn of(model: &Model) -> Self {
        let lengths = (0..300).map(|index| 3 + index * 7 % 6).collect();
        Self { inputs: model.graph.inputs.clone(), lengths }
    }

    fn feed(&self, input: &Value, indices: &[usize], draw: &mut Rng) -> Tensor {
        let longest = indices.iter().map(|&index| self.lengths[index]).max().unwrap_or(1);
        let dims = input.shape().unwrap();
        let size = |(axis, dim): (usize, &Dim)| match dim {
            Dim::Known(size) => *size as usize,
            _ if axis == 0 => indices.len(),
            _ => longest,
        };
        let shape: Vec<usize> = dims.iter().enumerate().map(size).collect();
        let width: usize = shape[1..].iter().product();
        let mut floats: Vec<f32> = Vec::new();
        let mut ids: Vec<i64> = Vec::new();
        for &index in indices {
            for place in 0..width {
                floats
                    .push((index as f32 * 0.37 + place as f32).sin() + draw.normal() as f32 * 0.1);
                let is_text = place < self.lengths[index];
                let id =
                    if input.name.contains("mask") { 1 } else { (index * 31 + place) % 50 + 5 };
                ids.push(if is_text { id as i64 } else { 0 });
            }
        }
        if input.dtype() == Some(DType::F32) {
            Tensor::new(&shape, &floats)
        } else {
            Tensor::new(&shape, &ids)
        }
    }
}

impl Source for Examples {
    fn len(&self) -> usize {
        self.lengths.len()
    }

    fn lengths(&self) -> Option<&[usize]> {
        Some(&self.lengths)
    }

    fn batch(&self, indices: &[usize], draw: &mut Rng) -> Result<Batch, TrainError> {
        let feed = |input: &Value| (input.name.clone(), self.feed(input, indices, draw));
        let feeds = self.inputs.iter().map(feed).collect();
        let labels = indices.iter().map(|&index| (index % CLASS_COUNT) as u32).collect();
        Ok(Batch { feeds, targets: Targets::Classes(labels), example_count: indices.len() })
    }
}

fn network(architecture: &str, options: &[(&str, &str)]) -> Model {
    let options: Vec<(String, String)> =
        options.iter().map(|&(key, value)| (key.to_string(), value.to_string())).collect();
    attar_import::new_model(architecture, &options).unwrap().model
}

fn trainer(model: &Model, threads: usize) -> Trainer {
    let schedule = Schedule {
        decay: Decay::Cosine { end: 0.1 },
        warm_up: Span::Fraction(0.1),
        ..Schedule::constant(0.003)
    };
    let loss = Choice::new("cross-entropy").with("label-smoothing", 0.1);
    let mut options = TrainerOptions::new(loss, Choice::new("adamw"), schedule);
    options.length.epochs = 100;
    options.length.steps_max = Some(STEP_COUNT);
    options.batches.size = NonZeroUsize::new(16).unwrap();
    options.weights.average = Some(0.99);
    options.clip_norm = Some(1.0);
    options.machine.threads = NonZeroUsize::new(threads).unwrap();
    Trainer::new(model, options).unwrap()
}

/// Present weights and their average.
fn result(trainer: &Trainer) -> [Model; 2] {
    [trainer.present_model(), trainer.model()]
}

/// Stops after some steps of a session.
struct StopAfter(usize);

impl Monitor for StopAfter {
    fn step(&mut self, _: &StepReport) -> Control {
        self.0 -= 1;
        if self.0 == 0 { Control::Stop } else { Control::GoOn }
    }

    fn epoch(&mut self, _: &EpochReport) -> Control {
        Control::GoOn
    }
}

/// Trains on one thread, on two, and stopped and resumed.
fn check(architecture: &str, options: &[(&str, &str)]) {
    let model = network(architecture, options);
    let source = Examples::of(&model);
    let mut whole = trainer(&model, 1);
    whole.run(&source, None, &mut Silent, None).unwrap();
    let whole = result(&whole);
    assert_ne!(whole[0], model);

    let mut two = trainer(&model, 2);
    two.run(&source, None, &mut Silent, None).unwrap();
    assert!(result(&two) == whole, "on two threads");

    let folder = Folder::new(&format!("training-{architecture}"));
    let checkpoints = Checkpoints {
        folder: folder.path().to_path_buf(),
        every_steps: None,
        every_seconds: None,
        resume: true,
        fingerprint: String::new(),
    };
    let mut stops = [7, 33, 19, 1, 1000].into_iter();
    let resumed = loop {
        let mut trainer = trainer(&model, 2);
        let mut monitor = StopAfter(stops.next().unwrap());
        if !trainer.run(&source, Some(&checkpoints), &mut monitor, None).unwrap().is_stopped {
            break result(&trainer);
        }
    };
    assert!(resumed == whole, "resumed");
}

#[test]
fn a_perceptron_ends_with_the_same_bits() {
    check("mlp", &[("features", "20"), ("hidden", "64,32"), ("classes", "3")]);
}

#[test]
fn a_convolutional_network_ends_with_the_same_bits() {
    let options =
        [("widths", "8,16"), ("depth", "1"), ("size", "12"), ("classes", "3"), ("dropout", "0.2")];
    check("cnn", &options);
}

#[test]
fn a_recurrent_network_ends_with_the_same_bits() {
    let options = [
        ("vocabulary", "60"),
        ("embedding", "12"),
        ("hidden", "16"),
        ("dropout", "0.2"),
        ("classes", "3"),
    ];
    check("lstm", &options);
}

#[test]
fn an_encoder_ends_with_the_same_bits() {
    let options = [
        ("layers", "2"),
        ("hidden", "24"),
        ("heads", "3"),
        ("ffn", "48"),
        ("vocabulary", "60"),
        ("head", "classifier"),
        ("classes", "3"),
    ];
    check("bert", &options);
}
