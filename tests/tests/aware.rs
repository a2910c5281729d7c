//! `quantize.aware` on convolutional networks: what training computes, what the integers compute on
//! `builtin`, and what ONNX Runtime makes of the file.
#![allow(clippy::unwrap_used)] // a test may fail where it stands

use attar::{NewRequest, new_model};
use attar_compress::{
    AwareSettings, Calibration, Context, PassError, fold_normalizations, plan_aware, plan_integers,
};
use attar_graph::{Model, Value, apply};
use attar_ops::opset::convert_opset;
use attar_runtime::{Builtin, Ort, RunOptions, Runtime};
use attar_tensor::{DType, Tensor};
use attar_tests::{Folder, numbers, ort_library};

struct Images(Vec<Tensor>);

impl Calibration for Images {
    fn for_each_batch(
        &self,
        inputs: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        self.0.iter().try_for_each(|images| visit(&[(inputs[0].name.as_str(), images)]))
    }
}

fn images(seed: u64) -> Tensor {
    Tensor::new(&[4, 1, 28, 28], &numbers(4 * 28 * 28, seed))
}

fn fresh(architecture: &str, options: &[(&str, &str)]) -> Model {
    let folder = Folder::new(&format!("aware-{architecture}"));
    let path = folder.join("model.onnx");
    let own = |(key, value): &(&str, &str)| ((*key).to_string(), (*value).to_string());
    let options: Vec<(String, String)> = options.iter().map(own).collect();
    let request = NewRequest { architecture, options: &options, output: &path, tokenizer: None };
    new_model(&request).unwrap();
    attar::load(&path).unwrap()
}

/// The model as it is trained.
fn fake(model: &Model, settings: &AwareSettings) -> Model {
    let mut model = model.clone();
    let folded = fold_normalizations(&model);
    apply(&mut model.graph, &folded).unwrap();
    if model.opset() < settings.opset() {
        convert_opset(&mut model, settings.opset()).unwrap();
    }
    let calibration = Images(vec![images(1), images(2)]);
    let context = Context { calibration: Some(&calibration), ..Context::new(&Builtin) };
    let made = plan_aware(&model, settings, &context).unwrap();
    apply(&mut model.graph, &made.plan).unwrap();
    model.import_domains();
    model
}

fn run(runtime: &dyn Runtime, model: &Model, x: &Tensor) -> Vec<f32> {
    let mut session = runtime.load(model, &RunOptions::default()).unwrap();
    let input = session.inputs()[0].name.clone();
    session.run(&[(&input, x)]).unwrap()[0].values::<f32>().into_owned()
}

/// ‖a − b‖ / ‖b‖.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = |pairs: &mut dyn Iterator<Item = f64>| pairs.map(|x| x * x).sum::<f64>();
    let lost = squares(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    (lost / squares(&mut b.iter().map(|b| f64::from(*b)))).sqrt()
}

/// How far the output moves when every constant is off by a few roundings of f32: sums of integers and
/// of floats round otherwise, and now and then a value passes to the next level.
fn movement(fake: &Model, x: &Tensor, trained: &[f32]) -> f64 {
    let moved = |seed: u64| {
        let mut model = fake.clone();
        let signs = numbers(1 << 16, seed);
        for tensor in model.graph.initializers.values_mut() {
            if tensor.tensor.dtype() == DType::F32 && tensor.tensor.element_count() > 0 {
                let shape = tensor.tensor.shape().to_vec();
                let values = tensor.tensor.values::<f32>();
                let off = |(i, w): (usize, &f32)| {
                    w * (1.0 + 2.0_f32.powi(-22).copysign(signs[i % signs.len()]))
                };
                let values: Vec<f32> = values.iter().enumerate().map(off).collect();
                *tensor = Tensor::new(&shape, &values).into();
            }
        }
        distance(&run(&Builtin, &model, x), trained)
    };
    (1..=6).map(moved).fold(0.0, f64::max)
}

/// Between runs that differ in roundings alone, of how far one moves another may be off.
const TIMES: f64 = 3.0;
/// Where no value passes to another level.
const FLOAT: f64 = 1e-5;

#[test]
fn every_runtime_computes_what_training_computes() {
    let ort = Ort::find(Some(&ort_library())).unwrap();
    let cnn =
        fresh("cnn", &[("widths", "8,16"), ("depth", "1"), ("channels", "1"), ("size", "28")]);
    let mobile = fresh("mobilenet_v2", &[("width", "0.35"), ("channels", "1"), ("size", "28")]);
    let x = images(3);
    for text in [
        // Products of 7-bit weights do not saturate on CPUs without VNNI.
        "weight_bits = 7\nends_bits = 7",
        "weight_bits = 4\nactivation_bits = 4\nends_bits = 7",
        "weight_bits = 3\nactivation_bits = 3\nends_bits = 7",
        "weight_bits = \"ternary\"\nactivation_bits = 8\nends_bits = 7",
        "weight_bits = \"binary\"\nactivation_bits = 16\nends_bits = 7",
    ] {
        for (name, model) in [("cnn", &cnn), ("mobilenet_v2", &mobile)] {
            let settings: AwareSettings = toml::from_str(text).unwrap();
            let fake = fake(model, &settings);
            let mut integers = fake.clone();
            apply(&mut integers.graph, &plan_integers(&fake, &settings).unwrap()).unwrap();
            integers.opsets.shift_remove("attar");
            let trained = run(&Builtin, &fake, &x);
            let bound = FLOAT.max(TIMES * movement(&fake, &x, &trained));
            for runtime in [&Builtin as &dyn Runtime, &ort] {
                let found = distance(&run(runtime, &integers, &x), &trained);
                assert!(found <= bound, "{name}, {text:?}, {}: {found}", runtime.name());
            }
        }
    }
}
