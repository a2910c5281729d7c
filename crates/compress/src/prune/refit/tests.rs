use attar_graph::testing::graph_from_text;
use attar_graph::{Model, Value, apply};
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::Tensor;
use attar_train::Rng;

use crate::{Calibration, Context, PassError, pass_entry};

const WIDTH: usize = 6;
const HIDDEN: usize = 16;
const ROWS: usize = 200;

/// Two residual blocks.
fn blocks() -> Model {
    let mut graph = graph_from_text(
        "x: f32[n, 6]\na = MatMul(x, w1)\nh = Relu(a)\nu = MatMul(h, w2)\ns = Add(u, x)\n\
         b = MatMul(s, w3)\ng = Relu(b)\nv = MatMul(g, w4)\ny = Add(v, s)",
    );
    let mut rng = Rng::new(&[3]);
    for (name, shape) in [
        ("w1", [WIDTH, HIDDEN]),
        ("w2", [HIDDEN, WIDTH]),
        ("w3", [WIDTH, HIDDEN]),
        ("w4", [HIDDEN, WIDTH]),
    ] {
        let values: Vec<f32> = (0..WIDTH * HIDDEN).map(|_| rng.normal() as f32).collect();
        graph.set_initializer(name, Tensor::new(&shape, &values));
    }
    graph.inputs.truncate(1);
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { ir_version: 8, opsets, graph, ..Model::default() }
}

/// Drawn rows, in one batch.
struct Drawn(Tensor);

impl Drawn {
    fn new() -> Self {
        let mut rng = Rng::new(&[4]);
        // Columns of different size.
        let value = |at: usize| rng.normal() as f32 * (1 + at % WIDTH) as f32;
        let values: Vec<f32> = (0..ROWS * WIDTH).map(value).collect();
        Self(Tensor::new(&[ROWS, WIDTH], &values))
    }
}

impl Calibration for Drawn {
    fn for_each_batch(
        &self,
        _: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        visit(&[("x", &self.0)])
    }
}

fn pruned(settings: &str) -> Model {
    let (mut model, data) = (blocks(), Drawn::new());
    let context = Context { calibration: Some(&data), ..Context::new(&Builtin) };
    let pass = pass_entry("prune.channels").unwrap().build(settings.parse().unwrap()).unwrap();
    let plan = pass.plan(&model, &context).unwrap();
    apply(&mut model.graph, &plan).unwrap();
    model
}

/// Values of a model on the calibration rows.
fn shown(model: &Model, names: &[&str]) -> Vec<Vec<f32>> {
    let observed: Vec<String> = names.iter().map(ToString::to_string).collect();
    let options = RunOptions { observed: observed.clone(), ..RunOptions::default() };
    let mut session = Builtin.load(model, &options).unwrap();
    let mut found = super::shown(session.as_mut(), &[("x", &Drawn::new().0)]).unwrap();
    observed.iter().map(|name| found.remove(name).unwrap().values::<f32>().into_owned()).collect()
}

#[test]
fn what_a_sum_misses_does_not_depend_on_what_its_product_reads() {
    let settings = "sparsity = 0.5\nimportance = \"second-order\"\nridge = 1e-6";
    let small = pruned(settings);
    assert_eq!(small.graph.constant("w4").unwrap().shape(), [HIDDEN / 2, WIDTH]);
    let expected = shown(&blocks(), &["s", "y"]);
    let found = shown(&small, &["h", "s", "g", "y"]);
    for (read, sum, expected) in
        [(&found[0], &found[1], &expected[0]), (&found[2], &found[3], &expected[1])]
    {
        // The normal equations: Xᵀ·(sum − original's) = 0.
        for k in 0..HIDDEN / 2 {
            for column in 0..WIDTH {
                let (mut moment, mut power) = (0.0, 0.0);
                for row in 0..ROWS {
                    let x = f64::from(read[row * HIDDEN / 2 + k]);
                    let at = row * WIDTH + column;
                    let missed = f64::from(sum[at]) - f64::from(expected[at]);
                    moment += x * missed;
                    power += (x * missed).abs();
                }
                assert!(moment.abs() < 1e-3 * power.max(1.0), "{moment} of {power}");
            }
        }
    }
}

fn missed(model: &Model) -> f64 {
    let (expected, found) = (shown(&blocks(), &["y"]), shown(model, &["y"]));
    let pairs = expected[0].iter().zip(&found[0]);
    pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

#[test]
fn ranked_together_as_many_operations_go_and_less_is_missed() {
    let of = |scope: &str| {
        let settings = format!(
            "sparsity = 0.5\nimportance = \"second-order\"\nridge = 1e-6\nscope = \"{scope}\""
        );
        pruned(&settings)
    };
    let (alike, together) = (of("group"), of("global"));
    let kept = |model: &Model, name: &str| model.graph.constant(name).unwrap().shape()[0];
    assert_eq!(kept(&together, "w2") + kept(&together, "w4"), HIDDEN);
    assert!(missed(&together) <= missed(&alike), "{} {}", missed(&together), missed(&alike));
}

#[test]
fn each_importance_cuts_as_many_channels_and_none_like_another() {
    let kept = |importance: &str| {
        let small = pruned(&format!("sparsity = 0.5\nimportance = \"{importance}\""));
        small.graph.constant("w1").unwrap().values::<f32>().into_owned()
    };
    let found: Vec<Vec<f32>> =
        ["l1", "activation", "taylor", "random"].into_iter().map(kept).collect();
    for (index, own) in found.iter().enumerate() {
        assert_eq!(own.len(), WIDTH * HIDDEN / 2);
        assert!(!found[..index].contains(own), "{index}");
    }
}
