//! Weights of every model in half types, in floats of 8 bits and in integers: what comes out is finite,
//! and as near to the original as the format allows.

use attar_compress::{Calibration, Context, PassError, pass_entry};
use attar_graph::{Model, Value, apply};
use attar_ops::opset::convert_opset;
use attar_runtime::{Builtin, Ort, RunOptions, Runtime};
use attar_tensor::Tensor;
use attar_tests::{data, ort_library};

use super::{Entry, Feeds, MODELS};

/// The step, and the largest relative error of an output, ‖ŷ − y‖ / ‖y‖.
const FORMATS: &[(&str, &str, f64)] = &[
    ("quantize.half", "", 0.01),
    ("quantize.half", "format = \"bf16\"", 0.05),
    ("quantize.half", "compute = true", 0.05),
    ("quantize.weights", "bits = 8\nrounding = \"nearest\"", 0.1),
];

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
        for &(pass, settings, bound) in FORMATS {
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
                        if error > bound {
                            failures.push(format!("{title}: {error:.3}"));
                        }
                    }
                    Err(error) => failures.push(format!("{title}: {error}")),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
