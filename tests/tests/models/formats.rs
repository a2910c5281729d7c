//! Weights of every model in half types, in floats of 8 bits and in integers: what comes out is finite,
//! and as near to the original as the format allows.

use attar_compress::{Calibration, Context, PassError, pass_entry};
use attar_graph::{Model, Value, apply};
use attar_ops::opset::convert_opset;
use attar_runtime::{Builtin, Ort, RunOptions, Runtime};
use attar_tensor::Tensor;
use attar_tests::{data, ort_library};

use super::{Entry, Feeds, MODELS};

/// The step, and how many times the error of weights in f16 its own may be. Their relative errors are
/// 2⁻¹² for f16, 2⁻⁹ for bf16 and, of a channel's largest weight, 2⁻⁸ for 8 bits; where values are computed
/// in half types, those are rounded as well. The last, ONNX Runtime multiplies with rows in 8 bits.
const FORMATS: &[(&str, &str, f64)] = &[
    ("quantize.half", "", 1.0),
    ("quantize.half", "format = \"bf16\"", 30.0),
    ("quantize.half", "compute = true", 10.0),
    ("quantize.weights", "bits = 8\nrounding = \"nearest\"", 120.0),
];
/// Largest relative error, ‖ŷ − y‖ / ‖y‖, of an output by weights in f16: a detector of text on a made-up
/// page comes to it, fifty times the error of its weights.
const HALF_MAX: f64 = 0.05;
/// Whatever the model makes of f16.
const ERROR_MAX: f64 = 0.6;

struct One(Feeds);

impl Calibration for One {
    fn for_each_batch(
        &self,
        _: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        visit(&self.0.iter().map(|(name, tensor)| (*name, tensor)).collect::<Vec<_>>())
    }
}

fn after(model: &Model, pass: &str, settings: &str, entry: &Entry) -> Result<Model, String> {
    let settings = settings.parse().map_err(|error| format!("{error}"))?;
    let pass =
        pass_entry(pass).and_then(|entry| entry.build(settings)).map_err(|e| e.to_string())?;
    let data = One(entry.feeds[0]());
    let context = Context { calibration: Some(&data), ..Context::new(&Builtin) };
    let mut model = model.clone();
    if model.opset() < pass.opset_min() {
        convert_opset(&mut model, pass.opset_min()).map_err(|error| error.to_string())?;
    }
    let plan = pass.plan(&model, &context).map_err(|error| error.to_string())?;
    apply(&mut model.graph, &plan).map_err(|error| error.to_string())?;
    model.import_domains();
    Ok(model)
}

fn outputs(runtime: &dyn Runtime, model: &Model, entry: &Entry) -> Result<Vec<Tensor>, String> {
    let session = runtime.load(model, &RunOptions::default());
    let mut session = session.map_err(|error| format!("{}: {error}", runtime.name()))?;
    let feeds = entry.feeds[0]();
    let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, t)| (*name, t)).collect();
    session.run(&feeds).map_err(|error| format!("{}: {error}", runtime.name()))
}

/// ‖ŷ − y‖ / ‖y‖ of the output that is furthest off.
fn relative_error(found: &[Tensor], expected: &[Tensor]) -> Result<f64, String> {
    let mut worst = 0.0_f64;
    for (found, expected) in found.iter().zip(expected) {
        let [found, expected] =
            [found, expected].map(|tensor| tensor.to_f64().ok_or("no numbers".to_string()));
        let (found, expected) = (found?, expected?);
        if found.len() != expected.len() {
            return Err(format!("{} numbers instead of {}", found.len(), expected.len()));
        }
        if found.iter().any(|x| !x.is_finite()) {
            return Err("values that are not finite".into());
        }
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let lost = square(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
        let power = square(&mut expected.iter().copied());
        worst = worst.max((lost / power.max(1e-12)).sqrt());
    }
    Ok(worst)
}

#[test]
#[allow(clippy::print_stdout)] // what the test shows
fn every_model_keeps_its_outputs_in_every_format() {
    let ort = Ort::find(Some(&ort_library())).expect("./test.sh fetches ONNX Runtime");
    let wanted = std::env::var("ATTAR_MODELS").unwrap_or_default();
    let mut failures = Vec::new();
    for entry in MODELS.iter().filter(|entry| entry.path.contains(&wanted)) {
        let model = (entry.load)(&data(entry.path));
        let expected = outputs(&Builtin, &model, entry).expect("the original runs");
        let mut of_half = HALF_MAX;
        for &(pass, settings, times) in FORMATS {
            let title = format!("{} {pass} {}", entry.path, settings.replace('\n', ", "));
            let made = match after(&model, pass, settings, entry) {
                Ok(made) => made,
                Err(error) => {
                    failures.push(format!("{title}: {error}"));
                    continue;
                }
            };
            let runtimes: [&dyn Runtime; 2] = [&Builtin, &ort];
            for runtime in runtimes {
                let found = outputs(runtime, &made, entry);
                match found.and_then(|found| relative_error(&found, &expected)) {
                    Ok(error) => {
                        println!("{title:90} {:10} {error:.1e}", runtime.name());
                        let bound = (times * of_half).clamp(1e-3, ERROR_MAX);
                        if error > if times == 1.0 { HALF_MAX } else { bound } {
                            failures.push(format!("{title}: {error:.3}"));
                        }
                        of_half = if times == 1.0 { error } else { of_half };
                    }
                    Err(error) => failures.push(format!("{title}: {error}")),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
