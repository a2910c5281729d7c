//! Real models train: a step against the gradient lowers the loss by what the gradient says.

use attar_graph::{Model, apply};
use attar_import::new_model;
use attar_ops::fuse::batch_normalization;
use attar_ops::{Flow, Pool, add_assign};
use attar_tensor::{DType, Tensor};
use attar_tests::{data, numbers};
use attar_train::{
    Choice, Schedule, StepContext, Tape, TapeOptions, Trainer, TrainerOptions, widen_half,
};

use super::{Feeds, MODELS, strokes};

/// Models that do not train, and why.
const UNTRAINED: &[(&str, &str)] = &[
    // Their weights are in the branches of an If, or before one.
    ("silero/silero_vad.onnx", "If (node"),
    ("silero/silero_vad_16k_op15.onnx", "If (node"),
    ("silero/silero_vad_half.onnx", "If (node"),
    ("silero/silero_vad_op18_ifless.onnx", "If (node"),
    ("akiki/akiki-vad.onnx", "If (node"),
    ("ddddocr/common_old.onnx", "DynamicQuantizeLSTM"),
];

struct Step {
    tape: Tape,
    variables: Vec<Tensor>,
    feeds: Vec<Tensor>,
    pool: Pool,
}

impl Step {
    fn new(model: &Model, feeds: &Feeds, unfused: bool) -> Result<Self, String> {
        // The first that is no copy of what goes in.
        let is_float = |output: &&attar_graph::Value| output.dtype() == Some(DType::F32);
        let output = model.graph.outputs.iter().find(is_float).unwrap_or(&model.graph.outputs[0]);
        let outputs = vec![output.name.clone()];
        let rate = Schedule::constant(0.1);
        let mut options = TrainerOptions::new(Choice::new("mse"), Choice::new("sgd"), rate);
        options.outputs.clone_from(&outputs);
        let trainer = Trainer::new(model, options).map_err(|error| error.to_string())?;
        let options = TapeOptions { unfused, outputs, ..TapeOptions::default() };
        let tape = Tape::new(model, trainer.trained(), &options).map_err(|e| e.to_string())?;
        let mut single = model.clone();
        widen_half(&mut single);
        let content = |name: &String| single.graph.constant(name).expect("it is stored").aligned();
        let variables = tape.variables().iter().map(content).collect();
        let feed = |input: &attar_graph::Value| {
            let found = feeds.iter().find(|(name, _)| *name == input.name);
            found.map(|(_, tensor)| tensor.clone()).expect("every input is fed")
        };
        let feeds = tape.inputs().iter().map(feed).collect();
        Ok(Self { tape, variables, feeds, pool: Pool::default() })
    }

    /// Loss and gradients: the loss weighs every number that comes out.
    fn run(&self, variables: &[Tensor]) -> Result<(f64, Vec<Tensor>), String> {
        let (feeds, context) = (self.feeds.clone(), StepContext::default());
        let recording = self.tape.forward(variables, feeds, context, &self.pool);
        let recording = recording.map_err(|error| error.to_string())?;
        let y = recording.outputs[0].clone();
        let weights = numbers(y.element_count(), 3);
        let terms = y.slice::<f32>().iter().zip(&weights);
        let loss = terms.map(|(y, w)| f64::from(*y) * f64::from(*w)).sum::<f64>();
        let gradient = Tensor::new(y.shape(), &weights);
        let mut sums = vec![None; self.tape.trained().len()];
        self.tape
            .backward(variables, recording, vec![Some(gradient)], &mut sums, &self.pool)
            .map_err(|error| error.to_string())?;
        let dense = |(sum, weight): (Option<Flow>, &Tensor)| match sum {
            Some(flow) => flow.into_dense(&self.pool),
            None => Tensor::zeros(DType::F32, weight.shape()),
        };
        Ok((loss, sums.into_iter().zip(variables).map(dense).collect()))
    }
}

fn squares(tensor: &Tensor) -> f64 {
    tensor.slice::<f32>().iter().map(|&x| f64::from(x) * f64::from(x)).sum()
}

/// What a step against the gradient lowers the loss by, over what the gradient says.
fn descent(model: &Model, feeds: &Feeds) -> Result<f64, String> {
    let step = Step::new(model, feeds, false)?;
    let (before, gradients) = step.run(&step.variables)?;
    let norm: f64 = gradients.iter().map(squares).sum();
    if !norm.is_finite() || norm <= 0.0 {
        return Err(format!("the gradients' squares add up to {norm}"));
    }
    // As the graph is written, the gradients are the same but for rounding.
    let (plain_loss, plain) = Step::new(model, feeds, true)?.run(&step.variables)?;
    let apart = gradients.iter().zip(&plain).map(|(a, b)| {
        let pairs = a.slice::<f32>().iter().zip(b.slice::<f32>());
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    });
    let apart: f64 = apart.sum();
    let is_same = (before - plain_loss).abs() <= 1e-3 * before.abs().max(1e-3);
    if !is_same || apart > 1e-4 * norm {
        return Err(format!("unfused {plain_loss} instead of {before}, {apart:e} of {norm:e}"));
    }
    // A long step stands clear of rounding, a short one of curvature: a right gradient shows in one.
    let mut shares = Vec::new();
    for length in [1e-3, 1e-4] {
        let rate = length * before.abs().max(0.1) / norm;
        let mut moved = step.variables.clone();
        for (weight, gradient) in moved.iter_mut().zip(&gradients) {
            let minus: Vec<f32> =
                gradient.slice::<f32>().iter().map(|g| (f64::from(*g) * -rate) as f32).collect();
            add_assign(weight.slice_mut::<f32>(), &minus);
        }
        let (after, _) = step.run(&moved)?;
        shares.push((before - after) / (rate * norm));
    }
    let off = |share: &f64| (share - 1.0).abs();
    Ok(shares.into_iter().min_by(|a, b| off(a).total_cmp(&off(b))).expect("there are two"))
}

#[test]
#[allow(clippy::print_stdout)] // what the test shows
fn real_models_train() {
    let wanted = std::env::var("ATTAR_MODELS").unwrap_or_default();
    let mut failures = Vec::new();
    for entry in MODELS.iter().filter(|entry| entry.path.contains(&wanted)) {
        let reason = UNTRAINED.iter().find(|(path, _)| *path == entry.path).map(|(_, why)| *why);
        let found = descent(&(entry.load)(&data(entry.path)), &entry.feeds[0]());
        println!("{:50} {found:?}", entry.path);
        let is_expected = match (&found, reason) {
            (Ok(share), None) => (share - 1.0).abs() <= 0.2,
            (Err(error), Some(reason)) => error.contains(reason),
            _ => false,
        };
        if !is_expected {
            failures.push(format!("{}: {found:?}", entry.path));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_network_whose_normalizations_were_folded_trains() {
    let mut model = new_model("mobilenet_v2", &[]).expect("it has defaults").model;
    let plan = batch_normalization::plan(&model);
    apply(&mut model.graph, &plan).expect("the plan fits");
    assert!(model.graph.nodes.iter().all(|node| node.op_type != "BatchNormalization"));
    let share = descent(&model, &vec![("image", strokes(&[2, 3, 32, 32], 1.0))]);
    assert!(share.as_ref().is_ok_and(|share| (share - 1.0).abs() <= 0.2), "{share:?}");
}
