//! Static int8 gives the same integers on CPUs with VNNI, with AVX2 alone and with NEON.
#![allow(clippy::unwrap_used)] // a test may fail where it stands

use attar_compress::saturation::{IntegerProduct, Isa, LevelRange, integer_products};
use attar_compress::{Calibration, Context, PassError, pass_entry};
use attar_evaluate::{Shape, synthetic_feeds};
use attar_graph::{Model, Value, apply};
use attar_runtime::{Builtin, Ort, RunOptions, Runtime};
use attar_tensor::{DType, Tensor};
use attar_tests::{data, ort_library};

/// One made-up example.
struct MadeUp;

fn shape_of(inputs: &[Value]) -> Shape {
    let is_image = inputs.iter().any(|input| input.dtype() == Some(DType::F32));
    Shape { batch: 1, length: if is_image { 64 } else { 20 } }
}

impl Calibration for MadeUp {
    fn for_each_batch(
        &self,
        inputs: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        let feeds = synthetic_feeds(inputs, shape_of(inputs))?;
        visit(&feeds.iter().map(|(name, t)| (name.as_str(), t)).collect::<Vec<_>>())
    }
}

/// The model after a pass with settings, and the pass's remarks.
fn after(model: &Model, pass: &str, settings: &str) -> (Model, Vec<String>) {
    let entry = pass_entry(pass).unwrap();
    let pass = entry.build(settings.parse().unwrap()).unwrap();
    let context = Context { calibration: Some(&MadeUp), ..Context::new(&Builtin) };
    let mut model = model.clone();
    let mut remarks = Vec::new();
    loop {
        let plan = pass.plan(&model, &context).unwrap();
        apply(&mut model.graph, &plan).unwrap();
        model.import_domains();
        remarks.extend(plan.remarks.iter().cloned());
        if plan.is_empty() || !pass.repeats() {
            return (model, remarks);
        }
    }
}

fn minilm() -> Model {
    let options = attar_import::FolderOptions::default();
    attar_import::import_text(&data("minilm"), &options).unwrap().model
}

/// With its normalizations folded, as they are before convolutions are quantized.
fn mobilenet() -> Model {
    let files = std::fs::read_dir(data("mobilenet")).unwrap();
    let mut files = files.flatten().map(|entry| entry.path());
    let path = files.find(|path| path.extension().is_some_and(|e| e == "pth")).unwrap();
    let model = attar_import::import_weights(&path, "mobilenet_v2").unwrap().model;
    after(&model, "fuse.batch-norm", "").0
}

/// Activations that drive the channel's sums furthest up and down, and one in between.
fn activations(channel: &[i8], range: LevelRange) -> [Vec<u8>; 3] {
    let at = |is_high: &dyn Fn(i8) -> bool| {
        channel.iter().map(|&w| if is_high(w) { range.high } else { range.low }).collect()
    };
    let middle = (0..channel.len()).map(|k| (k * 149 % 256) as u8).collect();
    [at(&|w| w > 0), at(&|w| w < 0), middle]
}

/// [window, inputs] in the place of [inputs, window].
fn channels_last<T: Copy>(values: &[T], shape: &[usize]) -> Vec<T> {
    let (inputs, window) = (shape[0], shape[1..].iter().product::<usize>());
    (0..values.len()).map(|k| values[k % inputs * window + k / inputs]).collect()
}

/// Channels of which two kinds of CPU give different sums.
fn differing_channels(product: &IntegerProduct) -> usize {
    let differs = |channel: &&Vec<i8>| {
        activations(channel, product.range).iter().any(|a| {
            let layouts = [
                (a.clone(), (*channel).clone()),
                (channels_last(a, &product.shape), channels_last(channel, &product.shape)),
            ];
            layouts.iter().any(|(a, w)| {
                let exact = Isa::Vnni.dot(a, w);
                Isa::Avx2.dot(a, w) != exact || Isa::Neon.dot(a, w) != exact
            })
        })
    };
    product.channels.iter().filter(differs).count()
}

#[test]
fn every_cpu_gives_the_integers_of_minilm_and_mobilenet() {
    for (model, name, product_count) in [(minilm(), "MiniLM", 36), (mobilenet(), "MobileNetV2", 53)]
    {
        let (quantized, remarks) = after(&model, "quantize.static", "keep_float = \"off\"");
        assert!(remarks.iter().any(|remark| remark.contains("were bounded")), "{remarks:?}");
        let products = integer_products(&quantized);
        assert_eq!(products.len(), product_count, "{name}");
        for product in &products {
            assert!(product.risk().is_none(), "{name} {}: {:?}", product.node, product.risk());
            assert_eq!(differing_channels(product), 0, "{name} {}", product.node);
        }
        // Weights as ONNX Runtime's own tools round them are not safe, which shows that the above
        // can fail.
        let (plain, _) =
            after(&model, "quantize.static", "saturation = \"ignore\"\nkeep_float = \"off\"");
        let products = integer_products(&plain);
        let at_risk: usize = products.iter().map(|product| product.risk().channel_count).sum();
        let differing: usize = products.iter().map(differing_channels).sum();
        assert!(at_risk > 1000 && differing > 1000, "{name}: {at_risk}, {differing}");
        assert!(differing <= at_risk, "{name}: sums differ where no risk was seen");
    }
}

fn run(runtime: &dyn Runtime, model: &Model) -> Vec<f32> {
    let mut session = runtime.load(model, &RunOptions::default()).unwrap();
    let feeds = synthetic_feeds(session.inputs(), shape_of(session.inputs())).unwrap();
    let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
    session.run(&feeds).unwrap()[0].values::<f32>().into_owned()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn operators_on_levels_take_the_place_of_qdq_on_both_runtimes() {
    let ort = Ort::find(Some(&ort_library())).unwrap();
    for (model, wanted) in [
        (minilm(), &[("MatMulIntegerToFloat", 36)][..]),
        (mobilenet(), &[("QLinearConv", 52), ("QLinearAdd", 10), ("QGemm", 1)][..]),
    ] {
        let (qdq, _) = after(&model, "quantize.static", "keep_float = \"off\"");
        let (on_levels, _) = after(&qdq, "quantize.qoperator", "");
        for &(op_type, count) in wanted {
            let found = on_levels.graph.nodes.iter().filter(|node| node.op_type == op_type).count();
            assert_eq!(found, count, "{op_type}");
        }
        assert!(!on_levels.graph.nodes.iter().any(|node| node.is("Conv") || node.is("Gemm")));
        assert_eq!(integer_products(&on_levels).len(), integer_products(&qdq).len());
        let expected = run(&Builtin, &qdq);
        for runtime in [&Builtin as &dyn Runtime, &ort] {
            let found = run(runtime, &on_levels);
            // A value between two levels falls to either side, and later layers carry it on.
            let same = cosine(&found, &expected);
            assert!(same > 0.998, "{}: {same}", runtime.name());
        }
    }
}
