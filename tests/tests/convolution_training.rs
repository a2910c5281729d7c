//! Models whose normalizations were folded into convolutions, and ones as they are deployed, train:
//! a step against the gradient lowers the loss by what the gradient says.
#![allow(clippy::unwrap_used)] // a test may fail where it stands

use std::collections::BTreeSet;

use attar::load;
use attar_graph::{Model, apply};
use attar_import::new_model;
use attar_ops::fuse::batch_normalization;
use attar_ops::{Pool, add_assign};
use attar_tensor::{DType, Tensor};
use attar_tests::{data, numbers};
use attar_train::{StepContext, Tape, TapeOptions};

/// Weights and biases of convolutions.
fn weights(model: &Model) -> Vec<String> {
    let convolutions = model.graph.nodes.iter().filter(|node| node.is("Conv"));
    let names = convolutions.flat_map(|node| node.inputs[1..].iter());
    let stored = names.filter(|name| model.graph.constant(name).is_some());
    stored.cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

struct Step {
    tape: Tape,
    variables: Vec<Tensor>,
    feed: Tensor,
    pool: Pool,
}

impl Step {
    fn new(model: &Model, feed: &Tensor, unfused: bool) -> Self {
        let options = TapeOptions { unfused, ..TapeOptions::default() };
        let tape = Tape::new(model, &weights(model), &options).unwrap();
        let content = |name: &String| model.graph.constant(name).unwrap().aligned();
        let variables = tape.variables().iter().map(content).collect();
        Self { tape, variables, feed: feed.clone(), pool: Pool::default() }
    }

    /// Loss and gradients: the loss weighs every output.
    fn run(&self, variables: &[Tensor]) -> (f64, Vec<Tensor>) {
        let (feeds, context) = (vec![self.feed.clone()], StepContext::default());
        let recording = self.tape.forward(variables, feeds, context, &self.pool).unwrap();
        let mut loss = 0.0;
        let mut gradients = Vec::new();
        for (seed, y) in recording.outputs.iter().enumerate() {
            let weights = numbers(y.element_count(), seed as u64 + 3);
            let terms = y.slice::<f32>().iter().zip(&weights);
            loss += terms.map(|(y, w)| f64::from(*y) * f64::from(*w)).sum::<f64>();
            gradients.push(Some(Tensor::new(y.shape(), &weights)));
        }
        let mut sums = vec![None; self.tape.trained().len()];
        self.tape.backward(variables, recording, gradients, &mut sums, &self.pool).unwrap();
        let dense = |(sum, weight): (Option<attar_ops::Flow>, &Tensor)| match sum {
            Some(flow) => flow.into_dense(&self.pool),
            None => Tensor::zeros(DType::F32, weight.shape()),
        };
        (loss, sums.into_iter().zip(variables).map(dense).collect())
    }
}

fn squares(tensor: &Tensor) -> f64 {
    tensor.slice::<f32>().iter().map(|&x| f64::from(x) * f64::from(x)).sum()
}

fn check(model: &Model, shape: &[usize]) {
    let count = shape.iter().product();
    let feed = Tensor::new(shape, &numbers(count, 11));
    let step = Step::new(model, &feed, false);
    assert!(!step.tape.trained().is_empty());
    let (before, gradients) = step.run(&step.variables);
    let norm: f64 = gradients.iter().map(squares).sum();
    assert!(norm.is_finite() && norm > 0.0);
    // As the graph is written, the gradients are the same but for rounding.
    let (plain_loss, plain) = Step::new(model, &feed, true).run(&step.variables);
    assert!((before - plain_loss).abs() <= 1e-3 * before.abs().max(1e-3));
    let apart = gradients.iter().zip(&plain).map(|(a, b)| {
        let pairs = a.slice::<f32>().iter().zip(b.slice::<f32>());
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    });
    let apart: f64 = apart.sum();
    assert!(apart <= 1e-4 * norm, "{apart} of {norm}");
    // A change that stands clear of the rounding of f32 sums.
    let rate = 1e-3 * before.abs().max(0.1) / norm;
    let mut moved = step.variables.clone();
    for (weight, gradient) in moved.iter_mut().zip(&gradients) {
        let minus: Vec<f32> =
            gradient.slice::<f32>().iter().map(|g| (f64::from(*g) * -rate) as f32).collect();
        add_assign(weight.slice_mut::<f32>(), &minus);
    }
    let (after, _) = step.run(&moved);
    let (found, expected) = (before - after, rate * norm);
    assert!((found - expected).abs() <= 0.2 * expected, "{found} instead of {expected}");
}

#[test]
fn a_network_whose_normalizations_were_folded_trains() {
    let mut model = new_model("mobilenet_v2", &[]).unwrap().model;
    let plan = batch_normalization::plan(&model);
    apply(&mut model.graph, &plan).unwrap();
    assert!(model.graph.nodes.iter().all(|node| node.op_type != "BatchNormalization"));
    check(&model, &[2, 3, 32, 32]);
}

#[test]
fn text_recognition_models_as_they_are_deployed_train() {
    let classifier = load(&data("rapidocr/ch_ppocr_mobile_v2.0_cls_infer.onnx")).unwrap();
    check(&classifier, &[1, 3, 48, 192]);
    let detector = load(&data("rapidocr/ch_PP-OCRv4_det_infer.onnx")).unwrap();
    check(&detector, &[1, 3, 64, 64]);
}
