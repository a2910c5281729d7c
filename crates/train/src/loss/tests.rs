//! Every loss beside its equation in f64, its gradients beside central differences of that.

use attar_ops::Pool;
use attar_tensor::Tensor;
use serde_json::json;

use super::{LOSSES, LossRun, Measured, build_loss, with_features};
use crate::{Choice, IGNORED_CLASS, Rng, Targets, TrainError};

const SCALE: f32 = 0.5;

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = Rng::new(&[seed]);
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| (rng.normal() * 1.5) as f32).collect();
    Tensor::new(shape, &values)
}

fn measure(choice: &Choice, outputs: &[Tensor], targets: &Targets) -> Result<Measured, TrainError> {
    let pool = Pool::default();
    build_loss(choice)?.measure(&LossRun { outputs, targets, scale: SCALE, pool: &pool })
}

/// Compares a loss with its equation over the numbers of all outputs.
fn check(choice: &Choice, outputs: &[Tensor], targets: &Targets, equation: &dyn Fn(&[f64]) -> f64) {
    let measured = measure(choice, outputs, targets).unwrap();
    let mut x: Vec<f64> =
        outputs.iter().flat_map(Tensor::slice::<f32>).map(|&x| f64::from(x)).collect();
    let wanted = equation(&x);
    assert!((measured.loss - wanted).abs() < 1e-5, "{choice:?}: {} {wanted}", measured.loss);
    let found: Vec<f32> = (measured.gradients.iter().zip(outputs))
        .flat_map(|(gradient, output)| {
            let zeros = || Tensor::zeros(attar_tensor::DType::F32, output.shape());
            let gradient = gradient.clone().unwrap_or_else(zeros);
            assert_eq!(gradient.shape(), output.shape());
            gradient.slice::<f32>().to_vec()
        })
        .collect();
    for at in 0..x.len() {
        let (middle, step) = (x[at], 1e-5);
        x[at] = middle + step;
        let above = equation(&x);
        x[at] = middle - step;
        let below = equation(&x);
        x[at] = middle;
        let slope = (above - below) / (2.0 * step) * f64::from(SCALE);
        let off = (f64::from(found[at]) - slope).abs();
        assert!(off < 1e-5 * (1.0 + slope.abs()), "{choice:?} [{at}]: {} {slope}", found[at]);
    }
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
    row.iter().map(|x| x - max - sum.ln()).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn cross_entropy_of_classes_is_its_equation() {
    let labels = [2, IGNORED_CLASS, 0, 4, 4, 1];
    let weights = [1.0, 0.5, 2.0, 1.0, 3.0];
    for (smoothing, weights) in [(0.0, &[][..]), (0.1, &[]), (0.0, &weights), (0.1, &weights)] {
        let choice = Choice::new("cross-entropy")
            .with("label-smoothing", smoothing)
            .with("class-weights", json!(weights));
        let weight = |class: usize| weights.get(class).copied().unwrap_or(1.0);
        let equation = |x: &[f64]| {
            let (mut sum, mut total) = (0.0, 0.0);
            for (row, &label) in x.chunks(5).zip(&labels).filter(|(_, l)| **l != IGNORED_CLASS) {
                let logs = log_softmax(row);
                let label = label as usize;
                let even: f64 = (0..5).map(|c| -weight(c) * logs[c]).sum();
                sum -= (1.0 - smoothing) * weight(label) * logs[label];
                sum += smoothing / 5.0 * even;
                total += weight(label);
            }
            sum / total
        };
        // Rows as examples, and as tokens of examples.
        for shape in [&[6, 5][..], &[2, 3, 5]] {
            let targets = Targets::Classes(labels.to_vec());
            check(&choice, &[noise(shape, 1)], &targets, &equation);
        }
    }
}

#[test]
fn cross_entropy_of_probabilities_is_its_equation() {
    let soft = [0.2, 0.8, 0.0, 0.0, 0.0, 1.0, 0.3, 0.3, 0.4];
    for smoothing in [0.0, 0.2] {
        let choice = Choice::new("cross-entropy").with("label-smoothing", smoothing);
        let equation = |x: &[f64]| {
            let rows = x.chunks(3).zip(soft.chunks(3));
            let row = |(x, t): (&[f64], &[f32])| -> f64 {
                let q = t.iter().map(|&t| f64::from(t) * (1.0 - smoothing) + smoothing / 3.0);
                q.zip(log_softmax(x)).map(|(q, log)| -q * log).sum()
            };
            rows.map(row).sum::<f64>() / 3.0
        };
        let targets = Targets::Soft(Tensor::new(&[3, 3], &soft));
        check(&choice, &[noise(&[3, 3], 2)], &targets, &equation);
    }
}

fn divergence(x: &[f64], teacher: &[f32], classes: usize, temperature: f64) -> f64 {
    let heated =
        |row: &[f64]| log_softmax(&row.iter().map(|x| x / temperature).collect::<Vec<_>>());
    let rows = x.chunks(classes).zip(teacher.chunks(classes));
    let row = |(x, t): (&[f64], &[f32])| -> f64 {
        let t = heated(&t.iter().map(|&t| f64::from(t)).collect::<Vec<_>>());
        heated(x).iter().zip(t).map(|(q, p)| p.exp() * (p - q)).sum()
    };
    temperature.powi(2) * rows.map(row).sum::<f64>() / (x.len() / classes) as f64
}

#[test]
fn divergence_from_a_teacher_is_its_equation() {
    let teacher = noise(&[4, 6], 3);
    for temperature in [1.0, 3.0] {
        let choice = Choice::new("kl").with("temperature", temperature);
        let equation = |x: &[f64]| divergence(x, teacher.slice::<f32>(), 6, temperature);
        let targets = Targets::Outputs(vec![teacher.clone()]);
        check(&choice, &[noise(&[4, 6], 4)], &targets, &equation);
    }
}

#[test]
fn distillation_mixes_labels_with_the_teacher() {
    let (teacher, labels) = (noise(&[4, 6], 5), [1, 0, 5, 3]);
    let choice = Choice::new("distillation").with("teacher-weight", 0.7).with("temperature", 2.0);
    let equation = |x: &[f64]| {
        let rows = x.chunks(6).zip(&labels);
        let entropy: f64 = rows.map(|(x, &label)| -log_softmax(x)[label as usize]).sum();
        0.3 * entropy / 4.0 + 0.7 * divergence(x, teacher.slice::<f32>(), 6, 2.0)
    };
    let labels = Box::new(Targets::Classes(labels.to_vec()));
    let targets = Targets::Taught { labels, outputs: vec![teacher.clone()] };
    check(&choice, &[noise(&[4, 6], 6)], &targets, &equation);
}

#[test]
fn the_worked_examples_of_distillation_hold() {
    let logs = |p: [f32; 3]| Tensor::new(&[1, 3], &p.map(f32::ln));
    let student = [logs([0.6, 0.3, 0.1])];
    let entropy =
        measure(&Choice::new("cross-entropy"), &student, &Targets::Classes(vec![0])).unwrap();
    assert!((entropy.loss - 0.5108).abs() < 5e-5, "{}", entropy.loss);
    let teacher = Targets::Outputs(vec![logs([0.8, 0.1, 0.1])]);
    let divergence = measure(&Choice::new("kl"), &student, &teacher).unwrap();
    assert!((divergence.loss - 0.1203).abs() < 5e-5, "{}", divergence.loss);
    let soft = Targets::Soft(Tensor::new(&[1, 3], &[0.8_f32, 0.1, 0.1]));
    let divergence = measure(&Choice::new("kl"), &student, &soft).unwrap();
    assert!((divergence.loss - 0.1203).abs() < 5e-5, "{}", divergence.loss);
}

#[test]
fn binary_cross_entropy_is_its_equation() {
    let t = [0.0_f32, 1.0, 0.25, 1.0, 0.0, 0.9];
    for weight in [1.0, 3.0] {
        let choice = Choice::new("binary-cross-entropy").with("positive-weight", weight);
        let equation = |x: &[f64]| {
            let one = |(x, &t): (&f64, &f32)| {
                let (p, t) = (1.0 / (1.0 + (-x).exp()), f64::from(t));
                -(weight * t * p.ln() + (1.0 - t) * (1.0 - p).ln())
            };
            x.iter().zip(&t).map(one).sum::<f64>() / 6.0
        };
        let targets = Targets::Values(Tensor::new(&[3, 2], &t));
        check(&choice, &[noise(&[3, 2], 7)], &targets, &equation);
    }
    let far = [Tensor::new(&[2], &[-300.0_f32, 300.0])];
    let targets = Targets::Classes(vec![0, 1]);
    let measured = measure(&Choice::new("binary-cross-entropy"), &far, &targets).unwrap();
    assert!(measured.loss < 1e-100);
}

#[test]
fn mean_squared_error_is_its_equation() {
    let (first, second) = (noise(&[2, 3], 8), noise(&[4], 9));
    let equation = |x: &[f64]| {
        let mean = |x: &[f64], t: &Tensor| {
            let pairs = x.iter().zip(t.slice::<f32>());
            pairs.map(|(x, &t)| (x - f64::from(t)).powi(2)).sum::<f64>() / x.len() as f64
        };
        mean(&x[..6], &first) + mean(&x[6..], &second)
    };
    let targets = Targets::Outputs(vec![first.clone(), second.clone()]);
    check(&Choice::new("mse"), &[noise(&[2, 3], 10), noise(&[4], 11)], &targets, &equation);
}

#[test]
fn cosine_is_its_equation() {
    let teacher = noise(&[3, 4], 12);
    let equation = |x: &[f64]| {
        let t: Vec<f64> = teacher.slice::<f32>().iter().map(|&t| f64::from(t)).collect();
        x.chunks(4).zip(t.chunks(4)).map(|(x, t)| 1.0 - cosine(x, t)).sum::<f64>() / 3.0
    };
    let targets = Targets::Outputs(vec![teacher.clone()]);
    check(&Choice::new("cosine"), &[noise(&[3, 4], 13)], &targets, &equation);
    let scores = [0.9_f32, 0.1, 0.5];
    let equation = |x: &[f64]| {
        let (a, b) = x.split_at(12);
        let pairs = a.chunks(4).zip(b.chunks(4)).zip(scores);
        pairs.map(|((a, b), s)| (cosine(a, b) - f64::from(s)).powi(2)).sum::<f64>() / 3.0
    };
    let targets = Targets::Values(Tensor::new(&[3], &scores));
    check(&Choice::new("cosine"), &[noise(&[6, 4], 14)], &targets, &equation);
    let two = [noise(&[3, 4], 15), noise(&[3, 4], 16)];
    check(&Choice::new("cosine"), &two, &targets, &equation);
}

#[test]
fn contrastive_is_its_equation() {
    for (symmetric, normalize) in [(false, true), (true, true), (true, false)] {
        let choice = Choice::new("contrastive")
            .with("symmetric", symmetric)
            .with("normalize", normalize)
            .with("temperature", 0.5);
        let equation = |x: &[f64]| {
            let (q, d) = x.split_at(12);
            let score = |i: usize, j: usize| {
                let (q, d) = (&q[i * 4..][..4], &d[j * 4..][..4]);
                let dot: f64 = q.iter().zip(d).map(|(q, d)| q * d).sum();
                if normalize { cosine(q, d) / 0.5 } else { dot / 0.5 }
            };
            let mut sum = 0.0;
            for i in 0..3 {
                sum -= log_softmax(&[score(i, 0), score(i, 1), score(i, 2)])[i];
                if symmetric {
                    sum -= log_softmax(&[score(0, i), score(1, i), score(2, i)])[i];
                }
            }
            sum / if symmetric { 6.0 } else { 3.0 }
        };
        check(&choice, &[noise(&[6, 4], 17)], &Targets::None, &equation);
        let two = [noise(&[3, 4], 18), noise(&[3, 4], 19)];
        check(&choice, &two, &Targets::None, &equation);
    }
}

#[test]
fn margin_is_its_equation() {
    let choice = Choice::new("margin").with("margin", 0.5);
    let equation =
        |x: &[f64]| (0..4).map(|i| (0.5 - (x[i] - x[i + 4])).max(0.0)).sum::<f64>() / 4.0;
    check(&choice, &[noise(&[8, 1], 20)], &Targets::None, &equation);
    let teacher = [0.5_f32, -1.0, 2.0, 0.0];
    let equation = |x: &[f64]| {
        (0..4).map(|i| (x[i] - x[i + 4] - f64::from(teacher[i])).powi(2)).sum::<f64>() / 4.0
    };
    let targets = Targets::Values(Tensor::new(&[4], &teacher));
    check(&choice, &[noise(&[8], 21)], &targets, &equation);
    let equation = |x: &[f64]| {
        let row = |group: usize, i: usize| &x[(group * 3 + i) * 4..][..4];
        let short = |i| 0.5 - cosine(row(0, i), row(1, i)) + cosine(row(0, i), row(2, i));
        (0..3).map(|i| short(i).max(0.0)).sum::<f64>() / 3.0
    };
    check(&choice, &[noise(&[9, 4], 22)], &Targets::None, &equation);
}

#[test]
fn features_add_their_relative_distance_to_any_loss() {
    let (weight, teacher) = (0.7, [noise(&[2, 3], 31), noise(&[2, 2, 2], 32)]);
    let outputs = [noise(&[2, 3], 33), noise(&[2, 3], 34), noise(&[2, 2, 2], 35)];
    let targets = Targets::Features {
        targets: Box::new(Targets::Classes(vec![2, 0])),
        features: teacher.to_vec(),
    };
    let loss = with_features(build_loss(&Choice::new("cross-entropy")).unwrap(), weight);
    let pool = Pool::default();
    let run = LossRun { outputs: &outputs, targets: &targets, scale: SCALE, pool: &pool };
    let measured = loss.measure(&run).unwrap();
    let plain =
        measure(&Choice::new("cross-entropy"), &outputs[..1], &Targets::Classes(vec![2, 0]));
    let plain = plain.unwrap();
    let mut wanted = plain.loss;
    for (y, t) in outputs[1..].iter().zip(&teacher) {
        let pairs = || y.slice::<f32>().iter().zip(t.slice::<f32>());
        let off: f64 = pairs().map(|(&y, &t)| f64::from(y - t).powi(2)).sum();
        let size: f64 = pairs().map(|(_, &t)| f64::from(t).powi(2)).sum();
        wanted += weight / 2.0 * off / size;
    }
    assert!((measured.loss - wanted).abs() < 1e-6, "{} {wanted}", measured.loss);
    let of = |gradients: &[Option<Tensor>], at: usize| {
        gradients[at].as_ref().unwrap().slice::<f32>().to_vec()
    };
    assert_eq!(of(&measured.gradients, 0), of(&plain.gradients, 0));
    for (at, t) in teacher.iter().enumerate() {
        let size: f64 = t.slice::<f32>().iter().map(|&t| f64::from(t).powi(2)).sum();
        let (y, t) = (outputs[at + 1].slice::<f32>(), t.slice::<f32>());
        for (place, &found) in of(&measured.gradients, at + 1).iter().enumerate() {
            let slope = f64::from(SCALE) * weight * f64::from(y[place] - t[place]) / size;
            assert!((f64::from(found) - slope).abs() < 1e-6, "{found} {slope}");
        }
    }
    let short = LossRun { outputs: &outputs[..1], ..run };
    assert!(matches!(loss.measure(&short), Err(TrainError::Targets { .. })));
}

#[test]
fn every_loss_is_built_by_its_defaults_and_tells_what_does_not_fit() {
    for entry in LOSSES {
        let mut choice = Choice::new(entry.name);
        build_loss(&choice).unwrap();
        for setting in entry.settings {
            let value: serde_json::Value = serde_json::from_str(setting.default).unwrap();
            choice = choice.with(setting.key, value);
        }
        build_loss(&choice).unwrap();
        assert!(build_loss(&choice.clone().with("no-such", 1)).is_err());
        let other = Targets::Outputs(vec![noise(&[3, 3], 1)]);
        let error = measure(&choice, &[noise(&[3, 2], 1)], &other).unwrap_err();
        assert!(matches!(error, TrainError::Targets { loss, .. } if loss == entry.name));
    }
    let error = measure(&Choice::new("hinge"), &[], &Targets::None).unwrap_err();
    assert!(error.to_string().contains("cross-entropy, distillation"), "{error}");
}

#[test]
fn a_class_beyond_the_outputs_is_an_error() {
    let targets = Targets::Classes(vec![0, 3]);
    let error = measure(&Choice::new("cross-entropy"), &[noise(&[2, 3], 1)], &targets);
    let message = "the loss cross-entropy is given class 3, expected 0 to 2";
    assert_eq!(error.unwrap_err().to_string(), message);
}
