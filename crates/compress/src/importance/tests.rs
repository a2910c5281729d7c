use attar_graph::testing::graph_from_text;
use attar_graph::{Model, Value};
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::Tensor;
use attar_train::Rng;

use super::*;
use crate::Calibration;

/// Feeds of the input `x`, one a batch.
struct Feeds(Vec<Tensor>);

impl Calibration for Feeds {
    fn for_each_batch(
        &self,
        _: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        self.0.iter().try_for_each(|tensor| visit(&[("x", tensor)]))
    }

    /// Every row is of class 1.
    fn classes(&self) -> Result<Option<Vec<Vec<u32>>>, PassError> {
        Ok(Some(self.0.iter().map(|tensor| vec![1; tensor.shape()[0]]).collect()))
    }
}

struct Unlabelled;
impl Calibration for Unlabelled {
    fn for_each_batch(
        &self,
        _: &[Value],
        _: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        Ok(())
    }
}

fn model(text: &str) -> Model {
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { ir_version: 8, opsets, graph: graph_from_text(text), ..Model::default() }
}

fn context(calibration: Option<&dyn Calibration>) -> Context<'_> {
    Context { calibration, ..Context::new(&Builtin) }
}

fn scored(model: &Model, importance: &str, names: &[&str], feeds: &Feeds) -> Vec<Vec<f32>> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let context = context(Some(feeds));
    let scoring = Scoring { model, names: &names, context: &context, seed: 7 };
    let scores = Importance::named(importance).scores(&scoring).unwrap();
    (0..names.len()).map(|index| scores.of(index)).collect()
}

const SQUARE: &str = "x: f32[n, 3]
    w = [0.1 0.2 0.3; 0.4 0.5 0.6; 0.7 0.8 0.9]
    y = MatMul(x, w)";

#[test]
fn relative_importance_sums_to_one() {
    let found = scored(&model(SQUARE), "relative", &["w"], &Feeds(Vec::new())).remove(0);
    // Σ|w| = 4.5.
    assert!((found[8] - 0.2).abs() < 1e-7, "{found:?}");
    assert!((found.iter().sum::<f32>() - 1.0).abs() < 1e-6);
}

#[test]
fn absolute_importances_are_the_value_and_its_square() {
    let model = model("x: f32[n, 2]\nw = [1 -2; -3 4]\ny = MatMul(x, w)");
    let feeds = Feeds(Vec::new());
    assert_eq!(scored(&model, "l1", &["w"], &feeds), [[1.0, 2.0, 3.0, 4.0]]);
    assert_eq!(scored(&model, "l2", &["w"], &feeds), [[1.0, 4.0, 9.0, 16.0]]);
}

#[test]
fn a_weight_counts_as_much_as_the_channel_that_it_meets() {
    let model = model("x: f32[n, 2]\nw = [1 -2; -3 4]\ny = MatMul(x, w)");
    let feeds = Feeds(vec![Tensor::new(&[2, 2], &[3.0_f32, 0.0, 4.0, 2.0])]);
    let found = scored(&model, "activation", &["w"], &feeds).remove(0);
    let (first, second) = (12.5_f32.sqrt(), 2.0_f32.sqrt());
    assert_eq!(found, [first, 2.0 * first, 3.0 * second, 4.0 * second]);
}

#[test]
fn activation_needs_a_product_and_data() {
    let model = model("x: f32[n, 2]\nw = [1 2; 3 4]\nh = MatMul(x, w)\ny = Add(h, w)");
    let names = ["w".to_string()];
    let feeds = Feeds(vec![Tensor::new(&[2, 2], &[1.0_f32; 4])]);
    let error = |calibration: Option<&dyn Calibration>, importance: &str| {
        let context = context(calibration);
        let scoring = Scoring { model: &model, names: &names, context: &context, seed: 0 };
        Importance::named(importance).scores(&scoring).err().unwrap().to_string()
    };
    assert!(error(Some(&feeds), "activation").contains("what `w` is multiplied with"));
    for entry in IMPORTANCES.iter().filter(|entry| entry.needs_data && entry.name != "activation") {
        assert_eq!(error(None, entry.name), "it needs calibration data, and none was given");
        let nothing = Feeds(Vec::new());
        assert_eq!(error(Some(&nothing), entry.name), "the calibration data holds no example");
    }
}

#[test]
fn random_scores_follow_their_seed_and_leave_zeros_lowest() {
    let model =
        model("x: f32[n, 2]\nw = [1 0; 3 4]\nv = [1 2; 3 4]\nh = MatMul(x, w)\ny = MatMul(h, v)");
    let feeds = Feeds(Vec::new());
    let both = scored(&model, "random", &["w", "v"], &feeds);
    assert_eq!(both[1], scored(&model, "random", &["v"], &feeds)[0]);
    assert_eq!(both[0][1], 0.0);
    assert_eq!(both.concat().iter().filter(|&&score| score > 0.0 && score < 1.0).count(), 7);
}

/// Outputs of the model where one weight has another value.
fn outputs_with(model: &Model, name: &str, at: usize, value: f32, x: &Tensor) -> Vec<f32> {
    let mut model = model.clone();
    let tensor = model.graph.constant(name).unwrap();
    let mut values = tensor.values::<f32>().into_owned();
    values[at] = value;
    let tensor = Tensor::new(tensor.shape(), &values);
    model.graph.set_initializer(name, tensor);
    let mut session = Builtin.load(&model, &RunOptions::default()).unwrap();
    session.run(&[("x", x)]).unwrap()[0].values::<f32>().into_owned()
}

#[test]
fn gradients_agree_with_finite_differences() {
    let model = model(
        "x: f32[n, 3]
        w = [0.1 0.2 -0.3 0.5; 0.4 -0.5 0.6 0.2; 0.7 0.8 0.9 -0.4]
        v = [0.3 -0.1; 0.2 0.5; -0.6 0.4; 0.1 0.7]
        h = MatMul(x, w)
        t = Tanh(h)
        y = MatMul(t, v)",
    );
    let x = Tensor::new(&[1, 3], &[0.5_f32, -0.8, 1.1]);
    // One example under many draws of signs.
    let count = 4000;
    let feeds = Feeds(vec![x.clone(); count]);
    let second = scored(&model, "taylor2", &["w", "v"], &feeds);
    let first = scored(&model, "taylor", &["w", "v"], &feeds);
    for (index, name) in ["w", "v"].into_iter().enumerate() {
        let weights = model.graph.constant(name).unwrap().values::<f32>().into_owned();
        for (at, &w) in weights.iter().enumerate() {
            let step = 1e-2;
            let high = outputs_with(&model, name, at, w + step, &x);
            let low = outputs_with(&model, name, at, w - step, &x);
            let slopes: Vec<f32> =
                high.iter().zip(&low).map(|(h, l)| (h - l) / (2.0 * step)).collect();
            // E[(w Σ vₖ ∂yₖ)²] = w² Σ (∂yₖ)², and for two outputs E|w Σ vₖ ∂yₖ| is the mean of
            // |w(∂y₁ + ∂y₂)| and |w(∂y₁ − ∂y₂)|.
            let square: f32 = slopes.iter().map(|s| s * s).sum::<f32>() * w * w;
            let mean =
                0.5 * w.abs() * ((slopes[0] + slopes[1]).abs() + (slopes[0] - slopes[1]).abs());
            // Draws of a mean over 4000 are within 4 deviations: 4/√4000 = 0.063 of the largest.
            let bound = |expected: f32| 0.07 * expected + 1e-4;
            assert!(
                (second[index][at] - square).abs() < bound(square),
                "{name}[{at}]: {} {square}",
                second[index][at]
            );
            assert!(
                (first[index][at] - mean).abs() < bound(mean),
                "{name}[{at}]: {} {mean}",
                first[index][at]
            );
        }
    }
}

#[test]
fn with_labels_the_gradient_is_that_of_the_loss() {
    let model = model("x: f32[n, 2]\nw = [0.5 -1; 2 0.3]\ny = MatMul(x, w)");
    let x = Tensor::new(&[1, 2], &[1.0_f32, -0.5]);
    let found = scored(&model, "loss", &["w"], &Feeds(vec![x])).remove(0);
    // y = (−0.5, −1.15); ∂L/∂y = p − (0, 1) for p = softmax(y), ∂L/∂w = x·∂L/∂yᵀ.
    let p = 1.0 / (1.0 + (-0.65_f32).exp());
    for (index, (w, x, dy)) in
        [(0.5, 1.0, p), (-1.0, 1.0, p), (2.0, -0.5, p), (0.3, -0.5, p)].into_iter().enumerate()
    {
        let expected: f32 = f32::abs(w * x * dy);
        assert!((found[index] - expected).abs() < 1e-6, "{found:?}");
    }
    let context = context(Some(&Unlabelled));
    let names = ["w".to_string()];
    let scoring = Scoring { model: &model, names: &names, context: &context, seed: 0 };
    let error = Importance::named("loss").scores(&scoring).err().unwrap();
    assert!(error.to_string().contains("with labels"), "{error}");
}

#[test]
fn every_importance_scores_each_weight_finitely_and_the_same_again() {
    let mut rng = Rng::new(&[3]);
    let mut model =
        model("x: f32[n, 2, 6, 6]\nh = Conv(x, k, pads=1,1,1,1)\nr = Relu(h)\ny = Conv(r, l)");
    for (name, shape) in [("k", [4, 2, 3, 3]), ("l", [3, 4, 1, 1])] {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| rng.normal() as f32).collect();
        model.graph.set_initializer(name, Tensor::new(&shape, &values));
    }
    model.graph.inputs.retain(|input| input.name == "x");
    let x: Vec<f32> = (0..72).map(|_| rng.normal() as f32).collect();
    let feeds = Feeds(vec![Tensor::new(&[1, 2, 6, 6], &x)]);
    for entry in IMPORTANCES.iter().filter(|entry| entry.name != "loss") {
        let found = scored(&model, entry.name, &["k", "l"], &feeds);
        assert_eq!([found[0].len(), found[1].len()], [72, 12], "{}", entry.name);
        assert!(found.iter().flatten().all(|score| score.is_finite() && *score >= 0.0));
        assert_eq!(found, scored(&model, entry.name, &["k", "l"], &feeds), "{}", entry.name);
    }
    assert!(
        Importance::try_from("magnitude".to_string()).unwrap_err().contains("there are l1, l2")
    );
}
