//! The gradients of a whole network: steps of plain gradient descent, beside `PyTorch`'s; and that they
//! do not depend on the number of threads.

use attar_graph::Model;
use attar_import::{FolderOptions, import_folder};
use attar_ops::{Flow, Pool};
use attar_tensor::{DType, Tensor};
use attar_tests::data;
use attar_train::{StepContext, Tape, TapeOptions};
use serde_json::Value;

use super::{Network, values};

/// Of the largest value: what steps in f32 may differ by from those of the reference in f64.
const TOLERANCE: f64 = 1e-5;

/// A network under training, and the mean square of its output less a target.
struct Descent {
    tape: Tape,
    weights: Vec<Tensor>,
    pool: Pool,
}

impl Descent {
    fn new(model: &Model, trained: &[String], unfused: bool) -> Self {
        let options = TapeOptions { unfused, ..TapeOptions::default() };
        let tape = Tape::new(model, trained, &options).expect("the network trains");
        let weight = |name: &String| model.graph.initializers[name].tensor.aligned();
        let weights = tape.variables().iter().map(weight).collect();
        Self { tape, weights, pool: Pool::default() }
    }

    /// The loss, and the gradients of the weights.
    fn gradients(&self, feeds: &[(String, Tensor)]) -> (f64, Vec<Option<Flow>>) {
        let fed = |name: &str| feeds.iter().find(|(n, _)| n == name).expect("it is fed").1.clone();
        let feeds = self.tape.inputs().iter().map(|input| fed(&input.name)).collect();
        let recording = self.tape.forward(&self.weights, feeds, StepContext::default(), &self.pool);
        let recording = recording.expect("the network runs");
        let y = &recording.outputs[0];
        let count = y.element_count();
        let targets = values("target", count).map(|value| value * 4.0);
        let apart: Vec<f64> = y
            .slice::<f32>()
            .iter()
            .zip(targets)
            .map(|(&y, target)| f64::from(y) - target)
            .collect();
        let loss = apart.iter().map(|d| d * d).sum::<f64>() / count as f64;
        let slopes: Vec<f32> = apart.iter().map(|d| (2.0 * d / count as f64) as f32).collect();
        let gradient = Tensor::new(y.shape(), &slopes);
        let mut sums = vec![None; self.weights.len()];
        self.tape
            .backward(&self.weights, recording, vec![Some(gradient)], &mut sums, &self.pool)
            .expect("the network runs backward");
        (loss, sums)
    }

    fn step(&mut self, feeds: &[(String, Tensor)], rate: f32) -> f64 {
        let (loss, sums) = self.gradients(feeds);
        for (weight, sum) in self.weights.iter_mut().zip(sums) {
            let gradient = sum.expect("every weight has part in the loss").into_dense(&self.pool);
            let pairs = weight.slice_mut::<f32>().iter_mut().zip(gradient.slice::<f32>());
            pairs.for_each(|(w, g)| *w -= rate * g);
        }
        loss
    }
}

/// The sum of a weight and 16 of its elements, in the order of the checkpoint.
fn summary(name: &str, weight: &Tensor) -> Vec<f64> {
    let values = weight.slice::<f32>();
    // Matrices stand transposed in a model.
    let at = |index: usize| match *weight.shape() {
        [rows, columns] if !name.contains("embeddings") => {
            values[index % rows * columns + index / rows]
        }
        _ => values[index],
    };
    let places = (0..16).map(|i| at(i * values.len() / 16));
    let sum = values.iter().map(|&x| f64::from(x)).sum();
    std::iter::once(sum).chain(places.map(f64::from)).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).expect("a list of numbers")
}

#[test]
fn a_tiny_bert_learns_what_it_learns_in_pytorch() {
    let network = Network::whole("bert_trained");
    let imported = network.import(false, 17);
    let reference = &network.reference["training"];
    let expected = reference["weights"].as_object().expect("an object");
    let trained: Vec<String> = expected.keys().cloned().collect();
    for unfused in [false, true] {
        let mut descent = Descent::new(imported.model(), &trained, unfused);
        let rate = reference["rate"].as_f64().expect("a rate") as f32;
        for loss in numbers(&reference["losses"]) {
            let found = descent.step(&network.feeds(), rate);
            assert!((found - loss).abs() <= TOLERANCE * loss, "loss {found}, in PyTorch {loss}");
        }
        for (name, weight) in trained.iter().zip(&descent.weights) {
            let (found, expected) = (summary(name, weight), numbers(&expected[name]));
            let largest = expected[1..].iter().fold(1e-3, |most: f64, x| most.max(x.abs()));
            let scales = std::iter::once(largest * weight.element_count() as f64);
            let scales = scales.chain(std::iter::repeat(largest));
            for ((found, expected), scale) in found.iter().zip(&expected).zip(scales) {
                let difference = (found - expected).abs() / scale;
                assert!(difference <= TOLERANCE, "{name}: {found}, in PyTorch {expected}");
            }
        }
    }
}

#[test]
fn gradients_of_an_encoder_are_the_same_bits_on_one_and_two_threads() {
    let options = FolderOptions { pooling: false, ..FolderOptions::default() };
    let imported = import_folder(&data("minilm"), &options).expect("the network imports");
    let model = imported.model();
    let is_trained = |tensor: &Tensor| tensor.dtype() == DType::F32 && tensor.element_count() > 1;
    let initializers = model.graph.initializers.iter();
    let trained: Vec<String> = initializers
        .filter(|(_, stored)| is_trained(&stored.tensor))
        .map(|(name, _)| name.clone())
        .collect();
    let descent = Descent::new(model, &trained, false);
    let ids: Vec<i64> = (0..4 * 24).map(|i| i * 7919 % 30_000).collect();
    let rows = |values: &[i64]| Tensor::new(&[4, 24], values);
    let feeds = [
        ("input_ids".to_string(), rows(&ids)),
        ("attention_mask".to_string(), rows(&[1; 96])),
        ("token_type_ids".to_string(), rows(&[0; 96])),
    ];
    let gradients = [1, 2].map(|threads| {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let (_, sums) = threads.expect("threads start").install(|| descent.gradients(&feeds));
        sums.into_iter().map(|sum| sum.map(|flow| flow.into_dense(&descent.pool)))
    });
    let [one, two] = gradients.map(Iterator::collect::<Vec<_>>);
    for ((name, one), two) in descent.tape.trained().iter().zip(one).zip(two) {
        assert_eq!(one, two, "{name}");
    }
}
