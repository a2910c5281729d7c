//! Shorter vectors: what stays of dot products, and where the projection goes.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use attar_compress::{Calibration, Context, PassError, pass_entry};
use attar_graph::testing::graph_from_text;
use attar_graph::{Dim, Model, Plan, Value, apply};
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::{DType, Tensor};
use attar_train::Rng;

struct Feeds(Vec<Tensor>);

impl Calibration for Feeds {
    fn for_each_batch(
        &self,
        _: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        self.0.iter().try_for_each(|tensor| visit(&[("x", tensor)]))
    }
}

const WIDTH: usize = 8;
const INPUTS: usize = 3;

fn drawn(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = Rng::new(&[seed]);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::new(shape, &values)
}

/// 40 rows in 10 batches.
fn feeds(width: usize) -> Feeds {
    Feeds((0..10).map(|batch| drawn(100 + batch, &[4, width])).collect())
}

/// `text` with the constants that it reads, of an output [batch, 8].
fn model(text: &str) -> Model {
    let mut graph = graph_from_text(text);
    let constants = [
        ("w", drawn(1, &[INPUTS, WIDTH])),
        ("wt", drawn(2, &[WIDTH, INPUTS])),
        ("b", drawn(3, &[WIDTH])),
        ("half", Tensor::scalar(0.5_f32)),
        ("two", Tensor::scalar(2.0_f32)),
        ("least", Tensor::scalar(1e-12_f32)),
        ("last", Tensor::new(&[1], &[-1_i64])),
    ];
    for (name, tensor) in constants {
        if graph.inputs.iter().any(|input| input.name == name) {
            graph.inputs.retain(|input| input.name != name);
            graph.set_initializer(name, tensor);
        }
    }
    for output in &mut graph.outputs {
        let shape = vec![Dim::symbol("batch"), WIDTH.into()];
        *output = Value::tensor(&output.name, DType::F32, shape);
    }
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { ir_version: 8, opsets, graph, ..Model::default() }
}

fn plan(model: &Model, settings: &str, calibration: Option<&Feeds>) -> Result<Plan, PassError> {
    let pass = pass_entry("prune.output").unwrap().build(settings.parse().unwrap())?;
    let context =
        Context { calibration: calibration.map(|feeds| feeds as _), ..Context::new(&Builtin) };
    pass.plan(model, &context)
}

fn shortened(model: &Model, settings: &str, feeds: &Feeds) -> Model {
    let plan = plan(model, settings, Some(feeds)).unwrap();
    let mut model = model.clone();
    apply(&mut model.graph, &plan).unwrap();
    let facts = attar_ops::infer_graph(&model);
    assert!(facts.problems.is_empty(), "{:?}", facts.problems);
    let output = &model.graph.outputs[0];
    assert_eq!(facts.get(&output.name).unwrap().shape.as_deref(), output.shape());
    model
}

/// The rows that a model gives for all feeds.
fn rows(model: &Model, feeds: &Feeds) -> Vec<Vec<f32>> {
    let mut session = Builtin.load(model, &RunOptions::default()).unwrap();
    let mut rows = Vec::new();
    for x in &feeds.0 {
        let y = session.run(&[("x", x)]).unwrap().remove(0);
        rows.extend(y.values::<f32>().chunks(y.shape()[1]).map(<[f32]>::to_vec));
    }
    rows
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
}

/// The root of the mean square difference of all dot products, relative to them.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let (mut lost, mut power) = (0.0, 0.0);
    for i in 0..a.len() {
        for j in 0..a.len() {
            let expected = dot(&a[i], &a[j]);
            lost += (expected - dot(&b[i], &b[j])).powi(2);
            power += expected.powi(2);
        }
    }
    (lost / power).sqrt()
}

fn ops(model: &Model) -> Vec<&str> {
    model.graph.nodes.iter().map(|node| node.op_type.as_str()).collect()
}

/// Ends that scale v to length 1, in the forms that exporters write.
const NORMALIZATIONS: [&str; 7] = [
    "y = LpNormalization(v, axis=1, p=2)",
    "l = ReduceL2(v, axes=1, keepdims=1)\ny = Div(v, l)",
    "l = ReduceL2(v, axes=-1, keepdims=1)\nm = Max(l, least)\ny = Div(v, m)",
    "l = ReduceL2(v, axes=1, keepdims=1)\nm = Clip(l, least)\ns = Shape(v)\ne = Expand(m, s)\n\
     y = Div(v, e)",
    "q = Mul(v, v)\nz = ReduceSum(q, last, keepdims=1)\nl = Sqrt(z)\ny = Div(v, l)",
    "q = Pow(v, two)\nz = ReduceSum(q, last, keepdims=0)\na = Add(z, least)\nl = Sqrt(a)\n\
     u = Unsqueeze(l, last)\ny = Div(v, u)",
    "z = ReduceSumSquare(v, axes=1, keepdims=1)\nl = Sqrt(z)\nr = Reciprocal(l)\ny = Mul(r, v)",
];

#[test]
fn vectors_of_a_subspace_keep_all_dot_products() {
    let feeds = feeds(INPUTS);
    for (source, is_folded) in [
        ("v = MatMul(x, w)", true),
        ("v = Gemm(x, wt, transB=1)", true),
        ("p = MatMul(x, w)\nv = Mul(p, half)", false),
    ] {
        for end in [&["y = Identity(v)"][..], &NORMALIZATIONS].concat() {
            let text = format!("x: f32[batch, {INPUTS}]\n{source}\n{end}");
            let model = model(&text);
            let found = shortened(&model, "size = 3", &feeds);
            let (before, after) = (rows(&model, &feeds), rows(&found, &feeds));
            assert_eq!(after[0].len(), 3, "{text}");
            assert!(difference(&before, &after) < 1e-5, "{text}");
            let is_unchanged = ops(&found) == ops(&model);
            assert_eq!(is_unchanged, is_folded && !end.contains("Identity"), "{text}");
        }
    }
}

#[test]
fn a_projection_goes_into_weights_and_biases_of_a_last_product() {
    let feeds = feeds(INPUTS);
    for text in [
        "y = MatMul(x, w)",
        "y = Gemm(x, w, b)",
        "y = Gemm(x, wt, b, transB=1)",
        "p = MatMul(x, w)\ny = Add(b, p)",
    ] {
        let model = model(&format!("x: f32[batch, {INPUTS}]\n{text}"));
        // A bias adds a dimension.
        let found = shortened(&model, "size = 4", &feeds);
        assert_eq!(ops(&found), ops(&model), "{text}");
        assert!(difference(&rows(&model, &feeds), &rows(&found, &feeds)) < 1e-5, "{text}");
    }
}

#[test]
fn what_others_read_stays_whole() {
    let feeds = feeds(INPUTS);
    let text = "x: f32[batch, 3]\nv = MatMul(x, w)\nl = ReduceL2(v, axes=1, keepdims=1)\n\
                y = Div(v, l)\nz = Neg(v)";
    let model = model(text);
    let plan = plan(&model, "size = 3\noutput = \"y\"", Some(&feeds)).unwrap();
    let mut found = model.clone();
    apply(&mut found.graph, &plan).unwrap();
    let sizes: Vec<Option<i64>> =
        found.graph.outputs.iter().map(|output| output.shape().unwrap()[1].known()).collect();
    assert_eq!(sizes, [Some(3), Some(8)]);
    assert!(attar_ops::infer_graph(&found).problems.is_empty());
    assert!(difference(&rows(&model, &feeds), &rows(&found, &feeds)) < 1e-5);
    let second = |model: &Model| {
        let mut session = Builtin.load(model, &RunOptions::default()).unwrap();
        session.run(&[("x", &feeds.0[0])]).unwrap()[1].values::<f32>().into_owned()
    };
    assert_eq!(second(&found), second(&model));
}

#[test]
fn a_truncated_vector_is_the_first_numbers_scaled_anew() {
    let feeds = feeds(INPUTS);
    for source in ["v = MatMul(x, w)", "p = MatMul(x, w)\nv = Tanh(p)"] {
        for end in ["y = Abs(v)", "l = ReduceL2(v, axes=1, keepdims=1)\ny = Div(v, l)"] {
            let model = model(&format!("x: f32[batch, {INPUTS}]\n{source}\n{end}"));
            let found = shortened(&model, "size = 5\nmethod = \"truncate\"", &feeds);
            for (before, after) in rows(&model, &feeds).iter().zip(rows(&found, &feeds)) {
                let first = &before[..5];
                let length = if end.contains("Div") { dot(first, first).sqrt() } else { 1.0 };
                for (a, b) in first.iter().zip(&after) {
                    assert!((f64::from(*a) / length - f64::from(*b)).abs() < 1e-6);
                }
                assert_eq!(after.len(), 5);
            }
        }
    }
}

#[test]
fn dot_products_are_nearer_than_those_of_the_first_dimensions() {
    let feeds = feeds(WIDTH);
    let model = model(&format!("x: f32[batch, {WIDTH}]\nh = Tanh(x)\ny = Add(h, b)"));
    let lost = |settings: &str| {
        let found = shortened(&model, settings, &feeds);
        difference(&rows(&model, &feeds), &rows(&found, &feeds))
    };
    let by_size: Vec<f64> = (1..WIDTH).map(|size| lost(&format!("size = {size}"))).collect();
    assert!(by_size.windows(2).all(|pair| pair[0] > pair[1]), "{by_size:?}");
    assert!(by_size[3] < 0.5 * lost("size = 4\nmethod = \"truncate\""), "{by_size:?}");
}

#[test]
fn shortening_twice_folds_the_second_projection_into_the_first() {
    let feeds = feeds(WIDTH);
    let model = model(&format!("x: f32[batch, {WIDTH}]\ny = Tanh(x)"));
    let once = shortened(&model, "size = 6", &feeds);
    let twice = shortened(&once, "size = 4", &feeds);
    assert_eq!(ops(&twice), ops(&once));
    let direct = shortened(&model, "size = 4", &feeds);
    assert!(difference(&rows(&direct, &feeds), &rows(&twice, &feeds)) < 1e-5);
}

#[test]
fn what_cannot_be_done_is_said() {
    let feeds = feeds(INPUTS);
    let one = model("x: f32[batch, 3]\ny = MatMul(x, w)");
    let two = model("x: f32[batch, 3]\nv = MatMul(x, w)\ny = Relu(v)\nz = Neg(v)");
    let whole = model("x: i64[batch, 3]\ny = Neg(x)");
    let error = |model: &Model, settings: &str, feeds: Option<&Feeds>| {
        plan(model, settings, feeds).err().unwrap().to_string()
    };
    let settings = "settings of `prune.output`: ";
    assert_eq!(
        error(&one, "size = 9", Some(&feeds)),
        format!("{settings}`size` is 9, and `y` has 8")
    );
    assert!(error(&one, "size = 0", Some(&feeds)).starts_with(settings));
    assert_eq!(error(&one, "size = 4", None), "it needs calibration data, and none was given");
    assert_eq!(
        error(&one, "size = 4\noutput = \"v\"", Some(&feeds)),
        format!("{settings}no output is called `v`; there are y")
    );
    assert_eq!(
        error(&two, "size = 4", Some(&feeds)),
        format!("{settings}`output` has to say which is the vector: y, z")
    );
    assert_eq!(
        error(&whole, "size = 2\nmethod = \"truncate\"", None),
        "output `y` cannot be made shorter: its type is not one of floats"
    );
    let nothing = plan(&one, "size = 8", None).unwrap();
    assert!(nothing.is_empty());
    assert_eq!(nothing.remarks, ["`y` has 8 dimensions already"]);
    let truncated = plan(&one, "size = 4\nmethod = \"truncate\"", None);
    assert!(!truncated.unwrap().is_empty(), "it needs no data");
}
