//! Small networks trained for a few steps, against what `PyTorch` makes of them in f64.
//!
//! `tests/reference/training` holds each network before the first step, its weights after the last,
//! and the loss of every step; `training.py` made them. The batches are made here, from the same
//! formulas.
#![allow(clippy::unwrap_used)] // a test may fail where it stands

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use attar_graph::Model;
use attar_import::read_weights;
use attar_tensor::Tensor;
use attar_train::{Batch, Choice, Decay, Schedule, Span, Targets, Trainer, TrainerOptions};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/training")
}

fn reference() -> Value {
    let bytes = std::fs::read(folder().join("reference.json")).expect("it is committed");
    serde_json::from_slice(&bytes).expect("the script writes JSON")
}

/// Whole numbers below `bound`, as `integers` of the script makes them.
fn integers(count: usize, step: usize, bound: usize) -> Vec<i64> {
    (0..count).map(|i| ((i + step * 1009) * 7919 % 10_007 % bound) as i64).collect()
}

/// From −1 to 1, as `noise` of the script makes it.
fn noise(shape: &[usize], step: usize) -> Tensor {
    let values = integers(shape.iter().product(), step, 8192);
    let scaled: Vec<f32> = values.iter().map(|&x| (x as f32 - 4096.0) / 4096.0).collect();
    Tensor::new(shape, &scaled)
}

/// Ids and a mask of at least one token, as `texts` of the script makes them.
fn texts(step: usize, count: usize, length: usize, vocabulary: usize) -> Vec<(String, Tensor)> {
    let ids = Tensor::new(&[count, length], &integers(count * length, step, vocabulary));
    let mut lengths: Vec<i64> =
        integers(count, step + 500, length).iter().map(|length| length + 1).collect();
    lengths[step % count] = length as i64;
    let mask: Vec<i64> = (lengths.iter())
        .flat_map(|&own| (0..length as i64).map(move |at| i64::from(at < own)))
        .collect();
    let mask = Tensor::new(&[count, length], &mask);
    vec![("input_ids".into(), ids), ("attention_mask".into(), mask)]
}

fn batch(network: &str, step: usize) -> Batch {
    let (feeds, classes) = match network {
        "cnn" => (vec![("image".into(), noise(&[8, 3, 12, 12], step))], integers(8, step, 5)),
        "bert" => (texts(step, 5, 8, 50), integers(5, step + 900, 3)),
        _ => (texts(step, 6, 9, 40), integers(6, step + 900, 3)),
    };
    let example_count = classes.len();
    let classes = classes.into_iter().map(|class| class as u32).collect();
    Batch { feeds, targets: Targets::Classes(classes), example_count }
}

fn options(settings: &Value, threads: usize) -> TrainerOptions {
    let number = |key: &str| settings[key].as_f64().expect("the script writes it");
    let mut optimizer = Choice::new(settings["optimizer"].as_str().expect("it has a name"))
        .with("weight-decay", number("weight_decay"));
    if settings["optimizer"] == "sgd" {
        optimizer = optimizer
            .with("momentum", number("momentum"))
            .with("nesterov", settings["nesterov"].clone());
    } else {
        optimizer = optimizer
            .with("betas", vec![number("beta1"), number("beta2")])
            .with("epsilon", number("epsilon"));
    }
    let is_cosine = settings["cosine"] == true;
    let decay = if is_cosine { Decay::Cosine { end: 0.0 } } else { Decay::Constant };
    let warm_up = Span::Steps(number("warm_up") as u64);
    let schedule = Schedule { learning_rate: number("learning_rate"), decay, warm_up };
    let mut options = TrainerOptions::new(Choice::new("cross-entropy"), optimizer, schedule);
    options.clip_norm = settings["clip_norm"].as_f64();
    options.machine.threads = NonZeroUsize::new(threads).expect("there is a thread");
    options
}

/// Trains a network, and gives it with the loss of each step.
fn trained(network: &str, reference: &Value, threads: usize) -> (Model, Vec<f64>) {
    let model = attar_onnx::load(&folder().join(format!("{network}.onnx"))).unwrap();
    let options = options(&reference["networks"][network]["settings"], threads);
    let schedule = options.schedule.clone();
    let mut trainer = Trainer::new(&model, options).unwrap();
    let number = |key: &str| reference[key].as_u64().expect("the script writes it");
    let (step_count, batch_count) = (number("steps"), number("batches"));
    let losses = (0..step_count)
        .map(|step| {
            let rate = schedule.rate(step, step_count);
            trainer.step(vec![batch(network, (step % batch_count) as usize)], rate).unwrap().loss
        })
        .collect();
    (trainer.model(), losses)
}

/// Trains a network as the script did, and holds losses and weights against the script's.
fn check(network: &str) {
    let reference = reference();
    let (model, losses) = trained(network, &reference, 1);
    let expected = reference["networks"][network]["losses"].as_array().expect("it has losses");
    assert_eq!(losses.len(), expected.len());
    for (step, (found, expected)) in losses.iter().zip(expected).enumerate() {
        let expected = expected.as_f64().expect("a loss is a number");
        // f32 rounds sums of up to 1152 products to 1e-5 of them; twenty steps add that up.
        let apart = (found - expected).abs() / expected.max(1.0);
        assert!(apart < 1e-4, "{network}, step {step}: loss {found}, expected {expected}");
    }
    let before = attar_onnx::load(&folder().join(format!("{network}.onnx"))).unwrap();
    let file = folder().join(format!("{network}.safetensors"));
    let weights = read_weights(&file, &attar_tensor::map_file(&file).unwrap()).unwrap();
    assert!(weights.len() > 5, "{network} has {} weights", weights.len());
    for (name, expected) in weights {
        let values = |model: &Model| {
            let tensor = model.graph.constant(&name).unwrap_or_else(|| panic!("no `{name}`"));
            tensor.values::<f32>().into_owned()
        };
        let (start, found) = (values(&before), values(&model));
        let expected = expected.values::<f32>();
        let moved = distance(&start, &expected);
        let apart = distance(&found, &expected);
        // A thousandth of the way that the weight went; the constant is for weights that have no
        // gradient but rounding's, such as the biases of keys, which softmax cancels.
        assert!(
            apart < 1e-3 * moved + 1e-5,
            "{network}, `{name}`: {apart} apart after moving {moved}"
        );
    }
}

/// The root of the mean squared difference.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

#[test]
fn a_convolutional_network_trains_as_in_pytorch() {
    check("cnn");
}

#[test]
fn an_lstm_trains_as_in_pytorch() {
    check("lstm");
}

#[test]
fn a_gru_trains_as_in_pytorch() {
    check("gru");
}

#[test]
fn a_transformer_trains_as_in_pytorch() {
    check("bert");
}

#[test]
fn weights_do_not_depend_on_the_number_of_threads() {
    let reference = reference();
    for network in ["cnn", "lstm", "gru", "bert"] {
        let (one, two) = (trained(network, &reference, 1), trained(network, &reference, 2));
        assert_eq!(one.1, two.1, "{network}");
        assert!(one.0 == two.0, "{network}: weights differ");
    }
}
