//! The contract of every pass, on real models and on none.

use attar_compress::{Calibration, Context, Exclude, PASSES, PassError, pass_entry};
use attar_evaluate::{Shape, synthetic_feeds};
use attar_graph::{AttributeValue, Model, Value, apply, validate};
use attar_ops::opset::convert_opset;
use attar_runtime::{Builtin, Ort, RunOptions, Runtime};
use attar_tensor::{DType, Tensor};
use attar_tests::{data, ort_library};

/// Feeds of several shapes, made up.
struct MadeUp;

fn shapes(inputs: &[Value]) -> Vec<Shape> {
    let is_image = inputs.iter().any(|input| input.dtype() == Some(DType::F32));
    let sizes = if is_image { vec![(1, 96)] } else { vec![(1, 12), (1, 40)] };
    sizes.into_iter().map(|(batch, length)| Shape { batch, length }).collect()
}

impl Calibration for MadeUp {
    fn for_each_batch(
        &self,
        inputs: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        for shape in shapes(inputs) {
            let feeds = synthetic_feeds(inputs, shape)?;
            let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
            visit(&feeds)?;
        }
        Ok(())
    }
}

fn context() -> Context<'static> {
    Context { calibration: Some(&MadeUp), ..Context::new(&Builtin) }
}

/// The required settings of each pass.
fn settings(pass: &str) -> toml::Table {
    match pass {
        "prune.magnitude" | "prune.channels" => "sparsity = 0.5".parse().expect("it is TOML"),
        "prune.blocks" => "count = 1".parse().expect("it is TOML"),
        "prune.output" => "size = 64".parse().expect("it is TOML"),
        "prune.threshold" => "alpha = 1e-6".parse().expect("it is TOML"),
        _ => toml::Table::new(),
    }
}

fn applied(model: &Model, pass: &str, context: &Context) -> Model {
    let entry = pass_entry(pass).expect("the pass is in the table");
    let pass = entry.build(settings(pass)).expect("the settings are right");
    let mut model = model.clone();
    if model.opset() < pass.opset_min() {
        convert_opset(&mut model, pass.opset_min()).expect("the model can be converted");
    }
    let plan = pass.prepare(&model).expect("what every model takes");
    apply(&mut model.graph, &plan).expect("what is done first can be applied");
    loop {
        let plan = pass.plan(&model, context).expect("the pass can plan");
        apply(&mut model.graph, &plan).expect("the plan can be applied");
        model.import_domains();
        if plan.is_empty() || !pass.repeats() {
            return model;
        }
    }
}

fn minilm() -> Model {
    let folder = data("minilm");
    attar_import::import_text(&folder, &attar_import::FolderOptions::default())
        .expect("MiniLM imports")
        .model
}

fn mobilenet() -> Model {
    let folder = std::fs::read_dir(data("mobilenet")).expect("the folder is readable");
    let mut files = folder.flatten().map(|entry| entry.path());
    let is_weights = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "pth");
    let path = files.find(is_weights).expect("the weights are there");
    attar_import::import_weights(&path, "mobilenet_v2").expect("MobileNetV2 imports").model
}

fn run(runtime: &dyn Runtime, model: &Model) -> Vec<f32> {
    let mut session = runtime.load(model, &RunOptions::default()).expect("the model loads");
    let shape = shapes(session.inputs())[0];
    let feeds = synthetic_feeds(session.inputs(), shape).expect("feeds can be made up");
    let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
    session.run(&feeds).expect("the model runs")[0].values::<f32>().into_owned()
}

fn ort() -> Ort {
    Ort::find(Some(&ort_library())).expect("./test.sh fetches ONNX Runtime")
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn every_pass_plans_nothing_on_an_empty_graph() {
    let opsets = [(String::new(), 17)].into_iter().collect();
    let model = Model { opsets, ..Model::default() };
    for entry in PASSES {
        let pass = entry.build(settings(entry.name)).unwrap();
        let plan = pass.plan(&model, &context()).unwrap();
        assert!(plan.is_empty(), "{}", entry.name);
    }
}

#[test]
fn every_pass_leaves_a_valid_graph_with_the_same_ends() {
    for model in [minilm(), mobilenet()] {
        for entry in PASSES {
            let result = applied(&model, entry.name, &context());
            validate(&result.graph).unwrap();
            assert_eq!(result.graph.inputs, model.graph.inputs, "{}", entry.name);
            // What this one is for.
            if entry.name != "prune.output" {
                assert_eq!(result.graph.outputs, model.graph.outputs, "{}", entry.name);
            }
            let facts = attar_ops::infer_graph(&result);
            assert!(facts.problems.is_empty(), "{}: {:?}", entry.name, facts.problems);
        }
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let model = minilm();
    for entry in PASSES {
        let bytes = || attar_onnx::to_bytes(&applied(&model, entry.name, &context())).unwrap();
        assert!(bytes() == bytes(), "{}", entry.name);
    }
}

#[test]
fn cleanup_keeps_every_bit() {
    for model in [minilm(), mobilenet()] {
        let cleaned = applied(&model, "cleanup", &context());
        assert_eq!(run(&Builtin, &cleaned), run(&Builtin, &model));
    }
}

#[test]
fn batch_normalization_folds_away_on_both_runtimes() {
    let model = mobilenet();
    let fused = applied(&model, "fuse.batch-norm", &context());
    assert!(!fused.graph.nodes.iter().any(|node| node.is("BatchNormalization")));
    let expected = run(&ort(), &model);
    let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    for found in [run(&Builtin, &fused), run(&ort(), &fused)] {
        let worst = found.iter().zip(&expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        // f32 sums through 53 convolutions, in other orders.
        assert!(worst < 2e-5 * largest, "{worst} of {largest}");
    }
}

#[test]
fn static_quantization_folds_batch_normalization_first() {
    let quantized = applied(&mobilenet(), "quantize.static", &context());
    assert!(!quantized.graph.nodes.iter().any(|node| node.is("BatchNormalization")));
}

#[test]
fn pruning_reaches_its_sparsity_exactly() {
    let model = minilm();
    let pruned = applied(&model, "prune.magnitude", &context());
    let name = "encoder.layer.3.intermediate.dense.weight";
    let values = pruned.graph.constant(name).unwrap().values::<f32>().into_owned();
    let original = model.graph.constant(name).unwrap().values::<f32>().into_owned();
    assert_eq!(values.iter().filter(|w| **w == 0.0).count(), values.len() / 2);
    let kept = values.iter().filter(|w| **w != 0.0).fold(f32::INFINITY, |m, w| m.min(w.abs()));
    let pairs = values.iter().zip(&original);
    let gone = pairs.filter(|(w, _)| **w == 0.0).fold(0.0_f32, |m, (_, w)| m.max(w.abs()));
    assert!(gone <= kept, "a pruned weight of {gone} is larger than a kept one of {kept}");
    let embedding = "embeddings.word_embeddings.weight";
    assert_eq!(pruned.graph.constant(embedding), model.graph.constant(embedding));
}

#[test]
fn quantized_models_agree_with_the_original_and_between_runtimes() {
    for (model, name) in [(minilm(), "MiniLM"), (mobilenet(), "MobileNetV2")] {
        let original = run(&Builtin, &model);
        for pass in ["quantize.static", "quantize.dynamic"] {
            let quantized = applied(&model, pass, &context());
            let (builtin, ort) = (run(&Builtin, &quantized), run(&ort(), &quantized));
            assert!(
                cosine(&builtin, &original) > 0.97,
                "{name} {pass}: {}",
                cosine(&builtin, &original)
            );
            // Float operators in between differ in the last digits, which now and then moves a value
            // by one level of 256; from there on the two differ as much as rounding itself does.
            assert!(cosine(&builtin, &ort) > 0.99, "{name} {pass}: {}", cosine(&builtin, &ort));
        }
    }
}

#[test]
fn static_quantization_writes_u8_activations_and_symmetric_i8_channels() {
    let quantized = applied(&minilm(), "quantize.static", &context());
    let graph = &quantized.graph;
    let mut products = 0;
    for node in graph.nodes.iter().filter(|node| node.is("DequantizeLinear")) {
        let zero = graph.constant(&node.inputs[2]).unwrap();
        match graph.constant(&node.inputs[0]) {
            Some(weight) => {
                assert_eq!(weight.dtype(), DType::I8);
                assert!(zero.bytes().iter().all(|&byte| byte == 0));
                let axis = AttributeValue::Int(1);
                assert_eq!(node.attribute("axis"), Some(&axis));
                assert_eq!(graph.constant(&node.inputs[1]).unwrap().shape(), [weight.shape()[1]]);
                products += 1;
            }
            None => assert_eq!(zero.dtype(), DType::U8),
        }
    }
    assert_eq!(products, 36);
    let largest = graph.constants().map(|(_, tensor)| tensor.size_bytes()).max().unwrap();
    assert_eq!(largest, 30522 * 384, "the embedding table is the largest constant, in bytes");
}

#[test]
fn an_excluded_node_stays_float() {
    let mut context = context();
    context.exclude = Exclude::new(vec!["/encoder/layer.0/*".into()]);
    let quantized = applied(&minilm(), "quantize.static", &context);
    let name = "encoder.layer.0.intermediate.dense.weight";
    assert_eq!(quantized.graph.constant(name).unwrap().dtype(), DType::F32);
    assert!(quantized.graph.constant("encoder.layer.1.intermediate.dense.weight").is_none());
}

#[test]
fn calibration_without_data_or_with_nan_is_an_error() {
    struct Nothing;
    impl Calibration for Nothing {
        fn for_each_batch(
            &self,
            _: &[Value],
            _: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
        ) -> Result<(), PassError> {
            Ok(())
        }
    }
    struct NotANumber;
    impl Calibration for NotANumber {
        fn for_each_batch(
            &self,
            inputs: &[Value],
            visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
        ) -> Result<(), PassError> {
            visit(&[(&inputs[0].name, &Tensor::new(&[1, 3, 8, 8], &[f32::NAN; 3 * 8 * 8]))])
        }
    }
    let model = mobilenet();
    let pass = pass_entry("quantize.static").unwrap().build(toml::Table::new()).unwrap();
    let plan = |calibration: Option<&dyn Calibration>| {
        let context = Context { calibration, ..context() };
        pass.plan(&model, &context).err().unwrap().to_string()
    };
    assert_eq!(plan(None), "it needs calibration data, and none was given");
    assert_eq!(plan(Some(&Nothing)), "the calibration data holds no example");
    assert_eq!(plan(Some(&NotANumber)), "`image` is not finite in calibration batch 0");
}

#[test]
fn shorter_vectors_are_the_same_on_both_runtimes() {
    let model = minilm();
    let whole = run(&Builtin, &model);
    for method in ["pca", "truncate"] {
        let settings = format!("size = 96\nmethod = \"{method}\"");
        let pass = pass_entry("prune.output").unwrap().build(settings.parse().unwrap()).unwrap();
        let mut short = model.clone();
        let plan = pass.plan(&model, &context()).unwrap();
        apply(&mut short.graph, &plan).unwrap();
        let (builtin, ort) = (run(&Builtin, &short), run(&ort(), &short));
        assert_eq!(builtin.len(), 96, "{method}");
        let length: f64 = builtin.iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((length - 1.0).abs() < 1e-6, "{method}: {length}");
        let worst = builtin.iter().zip(&ort).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        // f32 sums through six layers, in other orders.
        assert!(worst < 1e-5, "{method}: {worst}");
        if method == "truncate" {
            let first: f64 = whole[..96].iter().map(|&x| f64::from(x).powi(2)).sum();
            let scaled = whole.iter().map(|x| x / first.sqrt() as f32);
            assert!(scaled.zip(&builtin).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
}
