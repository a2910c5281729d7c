//! The main job: follow a recipe, measure before and after, hold the result against its budget.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use attar_compress::{Context, Exclude};
use attar_evaluate::{Dataset, Progress, Shape};
use attar_runtime::{Builtin, Runtime};
use serde::Serialize;

use crate::layers::{layer_changes, time_layers};
use crate::pipeline::{StepOutcome, run_step};
use crate::register::register_warning;
use crate::run_folder::RunFolder;
use crate::stage_steps::stage_step;
use crate::step_measures::{Clock, StepMeasures};
use crate::{
    CalibrationSample, Error, EvaluateOptions, Evaluation, LatencyRow, Recipe, RuntimeInvariance,
    Subject, TrainingData, evaluate_models, latency_of, runtime_invariance,
};

/// What to compress, how, and how to measure it.
pub struct CompressRequest<'a> {
    pub subject: Subject,
    pub recipe: Recipe,
    pub calibration: Option<(&'a Path, Dataset)>,
    /// Examples taken from the calibration data.
    pub calibration_count: usize,
    pub data: Option<Dataset>,
    /// What steps that train learn from.
    pub training: Option<(&'a Path, TrainingData)>,
    /// Becomes true when the user wants to stop: what trains then makes a checkpoint.
    pub stop: Arc<AtomicBool>,
    /// Runtimes to time on; the first one also measures quality.
    pub runtimes: Vec<Box<dyn Runtime>>,
    pub threads: NonZeroUsize,
    /// Whether to time original and result.
    pub is_timed: bool,
    /// Whether time and quality are measured after each step too.
    pub measures_steps: bool,
    pub latency_threads: NonZeroUsize,
    pub shape: Shape,
    pub output: &'a Path,
    pub resume: bool,
    pub progress: &'a dyn Progress,
}

/// What came of it; also the content of `report.json`.
#[derive(Debug, Serialize)]
pub struct CompressOutcome {
    pub attar_version: &'static str,
    pub input: PathBuf,
    pub output: PathBuf,
    pub size_bytes_before: u64,
    pub size_bytes: u64,
    pub steps: Vec<StepOutcome>,
    pub quality: Option<Evaluation>,
    pub latency: Vec<LatencyRow>,
    pub invariance: Vec<RuntimeInvariance>,
    /// What could not be measured, and where the result is worse than one would wish.
    pub warnings: Vec<String>,
    pub budget: Vec<BudgetCheck>,
    pub within_budget: bool,
}

/// One bound of the budget.
#[derive(Debug, Serialize)]
pub struct BudgetCheck {
    pub bound: &'static str,
    pub limit: f64,
    /// `None` where it was not measured, which counts as missed.
    pub found: Option<f64>,
    pub is_met: bool,
}

/// Plans every step and applies it in memory; writes nothing.
///
/// # Errors
/// A step that cannot be done.
pub fn dry_run(request: &CompressRequest) -> Result<Vec<StepOutcome>, Error> {
    if request.recipe.steps.is_empty() {
        return Err(no_step());
    }
    let mut current = request.subject.clone();
    let mut outcomes = Vec::new();
    for (index, step) in request.recipe.steps.iter().enumerate() {
        outcomes.push(if step.stage()?.is_some() {
            let mut outcome = StepOutcome::before(&step.pass, &current.model, request.shape);
            outcome.after(&current.model, request.shape, Instant::now());
            outcome.remarks = vec!["done only into a run folder".into()];
            outcome
        } else {
            pass_step(request, &mut current, index + 1, true)?
        });
    }
    Ok(outcomes)
}

/// A step that is a pass.
fn pass_step(
    request: &CompressRequest,
    current: &mut Subject,
    number: usize,
    keeps_edits: bool,
) -> Result<StepOutcome, Error> {
    let mut model = current.model.clone();
    let sample = calibration_sample(request, current)?;
    let step = &request.recipe.steps[number - 1];
    // A dry run is quick: it does not look at the clock.
    let runtime = request.runtimes.first().filter(|_| request.is_timed);
    let clock = runtime.map(|runtime| Clock {
        runtime: runtime.as_ref(),
        threads: request.latency_threads,
        shape: request.shape,
    });
    let mut context = context(request, sample.as_ref(), clock.as_ref());
    let mut outcome = run_step(&mut model, step, number, &mut context, request.shape, keeps_edits)?;
    let before = std::mem::replace(&mut current.model, model);
    outcome.layers = layer_changes(&before, &current.model, request.shape);
    if request.is_timed && !keeps_edits {
        let (threads, shape) = (request.latency_threads, request.shape);
        time_layers(&mut outcome.layers, &before, &current.model, threads, shape);
    }
    Ok(outcome)
}

fn no_step() -> Error {
    Error::Usage {
        message: "there is no step to do".into(),
        hint: "name one by `--step PASS`, or in the recipe; see `attar passes`".into(),
    }
}

pub(crate) fn calibration_sample<'a>(
    request: &'a CompressRequest,
    subject: &'a Subject,
) -> Result<Option<CalibrationSample<'a>>, Error> {
    let Some((_, data)) = &request.calibration else { return Ok(None) };
    let (count, progress) = (request.calibration_count, request.progress);
    CalibrationSample::new(data, subject, count, progress).map(Some)
}

pub(crate) fn context<'a>(
    request: &CompressRequest,
    sample: Option<&'a CalibrationSample<'a>>,
    clock: Option<&'a Clock<'a>>,
) -> Context<'a> {
    Context {
        calibration: sample.map(|sample| sample as _),
        runtime: &Builtin,
        threads: request.threads,
        exclude: Exclude::default(),
        timing: clock.map(|clock| clock as _),
    }
}

/// Follows the recipe into a run folder and measures the result against the original.
///
/// # Errors
/// A step that cannot be done, or a result that cannot be measured; the run stays resumable.
pub fn compress(request: &CompressRequest) -> Result<CompressOutcome, Error> {
    let subject = &request.subject;
    let calibration_path = request.calibration.as_ref().map(|(path, _)| *path);
    if request.recipe.steps.is_empty() {
        return Err(no_step());
    }
    // What would fail at the end fails now.
    if let Some(runtime) = request.runtimes.first().filter(|_| request.is_timed) {
        subject.session(runtime.as_ref(), &attar_runtime::RunOptions::default())?;
    }
    calibration_sample(request, subject)?;
    let mut current = subject.anywhere()?;
    let mut run = RunFolder::open(
        request.output,
        subject,
        &request.recipe,
        (calibration_path, request.calibration_count),
        request.training.as_ref().map(|(path, _)| *path),
        request.resume,
    )?;
    if let Some(model) = run.resumed_model()? {
        current.model = model;
        use_tokenizer(&mut current, run.resumed_tokenizer());
    }
    let done = run.outcomes.len();
    for (index, step) in request.recipe.steps.iter().enumerate().skip(done) {
        current.path = run.checkpoint.clone().unwrap_or_else(|| subject.path.clone());
        let number = index + 1;
        let outcome = match step.stage()? {
            None => pass_step(request, &mut current, number, false),
            Some(stage) => stage_step(request, &run, &stage, number, &mut current),
        };
        let mut outcome = outcome.inspect_err(|error| {
            // A training that was begun is gone on with.
            if !matches!(error, Error::Stopped) && !run.training_folder(number).exists() {
                run.discard_if_empty();
            }
        })?;
        if request.measures_steps {
            outcome.measures = Some(step_measures(request, &current)?);
        }
        run.step_done(&current.model, &outcome)?;
        if request.stop.load(Ordering::SeqCst) {
            return Err(Error::Stopped);
        }
    }
    let target = run.publish(&current)?;
    drop(current);
    let mut result = Subject::open(&target)?;
    result.name = "result".into();
    let outcome = measured(request, &result, std::mem::take(&mut run.outcomes))?;
    let report = serde_json::to_string_pretty(&outcome).expect("a report is made of JSON values");
    run.write("report.json", report.as_bytes())?;
    run.finish()?;
    Ok(outcome)
}

pub(crate) fn use_tokenizer(subject: &mut Subject, path: Option<PathBuf>) {
    let text = subject.preprocessing.as_mut().and_then(|p| p.text.as_mut());
    if let (Some(text), Some(path)) = (text, path) {
        text.tokenizer = path;
    }
}

/// What can be said of the data before anything is done; the report says it again.
///
/// # Errors
/// Texts that cannot be tokenized.
pub fn early_warnings(request: &CompressRequest) -> Result<Vec<String>, Error> {
    let (Some((_, calibration)), Some(data)) = (&request.calibration, &request.data) else {
        return Ok(Vec::new());
    };
    if data.texts().is_empty() || calibration.texts().is_empty() {
        return Ok(Vec::new());
    }
    let (count, encoder) = (request.calibration_count, request.subject.text_encoder()?);
    Ok(register_warning(calibration, count, data, &encoder)?.into_iter().collect())
}

/// Time and quality of what a step has left.
fn step_measures(request: &CompressRequest, current: &Subject) -> Result<StepMeasures, Error> {
    let subjects = [&request.subject, current];
    let mut latency = Vec::new();
    for runtime in request.runtimes.iter().filter(|_| request.is_timed) {
        // Another runtime than the chosen one may not know the model.
        let row =
            latency_of(&subjects, runtime.as_ref(), request.latency_threads, request.shape, 1.0);
        latency.extend(row.ok());
    }
    let quality = match (&request.data, request.runtimes.first()) {
        (Some(data), Some(runtime)) => Some(quality(request, &subjects, data, runtime.as_ref())?),
        _ => None,
    };
    Ok(StepMeasures::new(&latency, quality.as_ref()))
}

fn quality(
    request: &CompressRequest,
    subjects: &[&Subject],
    data: &Dataset,
    runtime: &dyn Runtime,
) -> Result<Evaluation, Error> {
    let options = EvaluateOptions {
        runtime,
        threads: request.threads,
        batch_size: 32,
        progress: request.progress,
    };
    evaluate_models(subjects, data, &options)
}

fn measured(
    request: &CompressRequest,
    result: &Subject,
    steps: Vec<StepOutcome>,
) -> Result<CompressOutcome, Error> {
    let subjects = [&request.subject, result];
    let (mut latency, mut warnings) = (Vec::new(), early_warnings(request)?);
    let timed = if request.is_timed { request.runtimes.as_slice() } else { &[] };
    for (index, runtime) in timed.iter().enumerate() {
        request.progress.advance("timing", index, timed.len());
        let threads = request.latency_threads;
        match latency_of(&subjects, runtime.as_ref(), threads, request.shape, 2.0) {
            Ok(row) => latency.push(row),
            // Another runtime than the chosen one may not know the model.
            Err(error) if index > 0 => warnings.push(format!("not timed: {}", error.chain())),
            Err(error) => return Err(error),
        }
    }
    request.progress.advance("timing", timed.len(), timed.len());
    let mut invariance = Vec::new();
    let mut quality = None;
    if let (Some(data), Some(runtime)) = (&request.data, request.runtimes.first()) {
        quality = Some(self::quality(request, &subjects, data, runtime.as_ref())?);
        if !data.texts().is_empty() {
            for (index, runtime) in request.runtimes.iter().enumerate() {
                request.progress.advance("batch invariance", index, request.runtimes.len());
                match runtime_invariance(&subjects, runtime.as_ref(), data, 64) {
                    Ok(row) => invariance.push(row),
                    Err(_) if index > 0 => {}
                    Err(error) => return Err(error),
                }
            }
            let count = request.runtimes.len();
            request.progress.advance("batch invariance", count, count);
        }
    }
    let of_steps = steps.iter().flat_map(|step| {
        step.warnings.iter().map(move |warning| format!("{}: {warning}", step.pass))
    });
    warnings.extend(of_steps);
    let mut outcome = CompressOutcome {
        attar_version: env!("CARGO_PKG_VERSION"),
        input: request.subject.path.clone(),
        output: request.output.to_path_buf(),
        size_bytes_before: request.subject.size_bytes,
        size_bytes: result.size_bytes,
        steps,
        quality,
        latency,
        invariance,
        warnings,
        budget: Vec::new(),
        within_budget: true,
    };
    for row in outcome.latency.iter().filter(|row| row.models[1].p50_ms > row.models[0].p50_ms) {
        outcome.warnings.push(format!("slower than the original on {}", row.runtime));
    }
    outcome.budget = check_budget(&request.recipe, &outcome);
    outcome.within_budget = outcome.budget.iter().all(|check| check.is_met);
    Ok(outcome)
}

fn check_budget(recipe: &Recipe, outcome: &CompressOutcome) -> Vec<BudgetCheck> {
    let budget = &recipe.budget;
    let result = outcome.quality.as_ref().and_then(|quality| quality.models.get(1));
    let drop = result
        .and_then(|model| model.metrics.first()?.difference)
        .map(|difference| -difference.value);
    let cosine = result.and_then(|model| model.agreement).map(|agreement| agreement.cosine_min);
    let speedup = outcome.latency.first().map(|row| row.models[0].p50_ms / row.models[1].p50_ms);
    let size = outcome.size_bytes as f64;
    let at_most = |bound, limit: Option<f64>, found: Option<f64>| {
        limit.map(|limit| {
            let is_met = found.is_some_and(|found| found <= limit);
            BudgetCheck { bound, limit, found, is_met }
        })
    };
    let at_least = |bound, limit: Option<f64>, found: Option<f64>| {
        limit.map(|limit| {
            let is_met = found.is_some_and(|found| found >= limit);
            BudgetCheck { bound, limit, found, is_met }
        })
    };
    let ratio = size / outcome.size_bytes_before.max(1) as f64;
    [
        at_most("size_bytes_max", budget.size_bytes_max.map(|max| max as f64), Some(size)),
        at_most("size_ratio_max", budget.size_ratio_max, Some(ratio)),
        at_most("quality_drop_max", budget.quality_drop_max, drop),
        at_least("speedup_min", budget.speedup_min, speedup),
        at_least("cosine_min", budget.cosine_min, cosine),
    ]
    .into_iter()
    .flatten()
    .collect()
}
