//! Calibration data at its edges: the right result, or an error that says what is wrong.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use attar_compress::{Calibration, Context, PassError, pass_entry};
use attar_graph::testing::graph_from_text;
use attar_graph::{Model, Value, apply};
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::Tensor;

/// Feeds under one name, one a batch.
struct Feeds(&'static str, Vec<Tensor>);

impl Calibration for Feeds {
    fn for_each_batch(
        &self,
        _: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        self.1.iter().try_for_each(|tensor| visit(&[(self.0, tensor)]))
    }
}

/// y = x · w, with weights of which each has its channel's full level: they round to themselves.
fn model() -> Model {
    let graph =
        graph_from_text("x: f32[batch, 4]\nw = [1 -0.5; 1 0.5; -1 0.5; 1 -0.5]\ny = MatMul(x, w)");
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { ir_version: 8, opsets, graph, ..Model::default() }
}

fn quantized(feeds: &Feeds) -> Result<Model, PassError> {
    let settings = "embeddings = false".parse().unwrap();
    let pass = pass_entry("quantize.static").unwrap().build(settings).unwrap();
    let context = Context { calibration: Some(feeds), ..Context::new(&Builtin) };
    let mut model = model();
    let plan = pass.plan(&model, &context)?;
    apply(&mut model.graph, &plan).unwrap();
    Ok(model)
}

fn run(model: &Model, x: &Tensor) -> Vec<f32> {
    let mut session = Builtin.load(model, &RunOptions::default()).unwrap();
    session.run(&[("x", x)]).unwrap()[0].values::<f32>().into_owned()
}

fn row(values: [f32; 4]) -> Tensor {
    Tensor::new(&[1, 4], &values)
}

fn error(feeds: &Feeds) -> String {
    quantized(feeds).err().unwrap().to_string()
}

#[test]
fn ranges_hold_at_every_magnitude_from_one_example() {
    for values in [
        [0.5, -1.0, 2.0, 0.25],
        [0.0; 4],
        [5.0; 4],
        [-3.0; 4],
        [1e-40, -1e-41, 0.0, 2e-40],
        [1e-30, 2e-30, -1e-30, 0.0],
        [1.0, 2.0, -1.0, 1e30],
        [8e37, -8e37, 8e37, 0.0],
    ] {
        let x = row(values);
        let quantized = quantized(&Feeds("x", vec![x.clone()])).unwrap();
        let (found, expected) = (run(&quantized, &x), run(&model(), &x));
        let span = values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            // Half a step of each of four inputs, of at most 2·span / 255, and as much of a weight.
            let allowed = span * 8.0 / 255.0 + 1e-38;
            assert!((found - expected).abs() <= allowed, "{values:?}: {found} for {expected}");
        }
    }
}

#[test]
fn values_that_are_not_finite_are_named_with_their_batch() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let feeds = Feeds("x", vec![row([1.0; 4]), row([1.0, value, 0.0, 0.0])]);
        assert_eq!(error(&feeds), "`x` is not finite in calibration batch 1");
    }
}

#[test]
fn wrong_names_and_shapes_are_errors_that_say_so() {
    let name = error(&Feeds("z", vec![row([1.0; 4])]));
    assert!(name.contains("`x`") || name.contains("`z`"), "{name}");
    let shape = error(&Feeds("x", vec![Tensor::new(&[1, 3], &[1.0_f32; 3])]));
    assert!(shape.contains('3') && shape.contains('4'), "{shape}");
    assert_eq!(error(&Feeds("x", Vec::new())), "the calibration data holds no example");
}

#[test]
fn a_batch_of_no_rows_changes_nothing() {
    let empty = Tensor::new(&[0, 4], &[] as &[f32]);
    let x = row([0.5, -1.0, 2.0, 0.25]);
    let with = quantized(&Feeds("x", vec![empty.clone(), x.clone()])).unwrap();
    let without = quantized(&Feeds("x", vec![x.clone()])).unwrap();
    assert_eq!(run(&with, &x), run(&without, &x));
    // And alone it leaves a model that runs.
    assert!(run(&quantized(&Feeds("x", vec![empty.clone()])).unwrap(), &empty).is_empty());
}
