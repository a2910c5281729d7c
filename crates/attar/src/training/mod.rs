//! Training: a model, a data set and what to make small become a model ready to serve.

mod augment;
mod choice;
mod data;
mod features;
mod feeder;
mod folder;
mod prepare;
mod report;
mod source;
mod watch;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use attar_evaluate::{Dataset, Silent};
use attar_runtime::{Builtin, RunOptions};
use attar_train::{Checkpoints, Choice, Outcome, Schedule, Trainer, TrainerOptions, Validate};
use serde::Serialize;

pub use augment::Augment;
pub(crate) use choice::parts;
pub use choice::{parse_choice, parse_schedule, set as set_choice};
pub use data::{TrainingData, Validation};
pub use features::shared_features;
pub use folder::CurvePoint;
pub use prepare::{TrainDefaults, training_defaults};
pub use report::{TrainBegun, TrainProgress};

use crate::run_folder::{crc32, publish};
use crate::{Error, EvaluateOptions, Evaluation, Subject, evaluate_models};
use folder::{Entry, Ingredients, TrainFolder};
use report::Reporter;
use watch::Watch;

/// What to train, on what, and how.
pub struct TrainRequest<'a> {
    pub subject: Subject,
    /// Where the data comes from, for the journal.
    pub data_path: &'a Path,
    pub data: &'a TrainingData,
    /// With 0 epochs: as many as `steps_max` needs.
    pub options: TrainerOptions,
    pub augment: Augment,
    /// A model to learn from.
    pub teacher: Option<Subject>,
    /// Values that both models compute and whose distance is made small too, by the patterns of
    /// [`shared_features`]; filled in with their names.
    pub features: Vec<String>,
    /// Steps from one checkpoint to the next; by default one a minute.
    pub checkpoint_every: Option<u64>,
    /// Steps from one line of the journal to the next.
    pub log_every: u64,
    pub output: &'a Path,
    pub resume: bool,
}

/// What came of it; also the content of `report.json`.
#[derive(Debug, Serialize)]
pub struct TrainOutcome {
    pub attar_version: &'static str,
    pub input: PathBuf,
    pub output: PathBuf,
    pub data: PathBuf,
    pub data_kind: &'static str,
    pub example_count: usize,
    pub validation_count: usize,
    pub loss: Choice,
    pub optimizer: Choice,
    pub schedule: Schedule,
    pub batch_size: usize,
    pub seed: u64,
    /// What the best weights were chosen by.
    pub metric: Option<&'static str>,
    pub best: Option<f64>,
    pub step: u64,
    pub curve: Vec<CurvePoint>,
    /// Of this session.
    pub seconds: f64,
    /// Whether it was stopped before its end; the run can go on.
    pub is_stopped: bool,
    /// Whether the metric no longer rose.
    pub is_early: bool,
    /// Original and result on the validation data.
    pub quality: Option<Evaluation>,
    /// Zeros among the weights that were pruned on the way, and how many these are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pruned_counts: Option<[usize; 2]>,
    pub remarks: Vec<String>,
}

/// Trains into a run folder, and measures the result against the original.
///
/// # Errors
/// A model, data and options that do not fit each other, a step that fails, or a folder that cannot
/// be written; what was done stays resumable.
pub fn train(
    mut request: TrainRequest,
    progress: &mut dyn TrainProgress,
) -> Result<TrainOutcome, Error> {
    let started = std::time::Instant::now();
    let labels_remark = prepare::name_labels(&mut request.subject, &request.data.train);
    let outputs = features::show(&mut request)?;
    let threads = request.options.machine.threads;
    let run_options = RunOptions { threads, observed: Vec::new() };
    let (source, mut remarks) = prepare::source(&request, &run_options)?;
    remarks.extend(labels_remark);
    let mut options = request.options.clone();
    options.outputs = vec![source.student.output.clone()];
    options.outputs.extend(request.features.iter().cloned());
    if !request.features.is_empty() {
        options.feature_weight.get_or_insert(1.0);
    }
    prepare::fit_length(&mut options, source.count);
    let mut watch = watch(&request, &options, &run_options)?;
    let mut trainer = Trainer::new(&request.subject.model, options.clone())?;
    let ingredients = ingredients(&request, &options)?;
    let mut folder = TrainFolder::open(request.output, &ingredients, request.resume)?;
    let checkpoints = Checkpoints {
        folder: folder.checkpoints(),
        every_steps: request.checkpoint_every,
        every_seconds: request.checkpoint_every.is_none().then_some(60),
        resume: request.resume,
        fingerprint: serde_json::to_string(&ingredients).expect("ingredients are JSON values"),
    };
    let metric = watch.as_ref().map(|watch| watch.metric);
    progress.begun(&TrainBegun {
        data_kind: request.data.train.kind_name(),
        example_count: source.count,
        validation_count: request.data.validation.as_ref().map_or(0, Dataset::example_count),
        options: &options,
        weight_count: trainer.trained().len(),
        metric,
        remarks: &remarks,
    });
    let mut reporter = Reporter::new(&mut folder, progress, request.log_every);
    let validate = watch.as_mut().map(|watch| watch as &mut dyn Validate);
    let ran = trainer.run(&source, Some(&checkpoints), &mut reporter, validate);
    let ran = match reporter.failed.take() {
        Some(error) => Err(error),
        None => ran.map_err(Error::from),
    };
    let ran = ran.inspect_err(|_| {
        if trainer.step_count() == 0 {
            folder.discard();
        }
    })?;
    let example_count = source.count;
    drop((source, watch));
    let mut outcome = outcome(&request, &options, &ran, folder.curve.clone());
    (outcome.example_count, outcome.metric, outcome.remarks) = (example_count, metric, remarks);
    if ran.is_stopped {
        folder.append(&Entry::Stopped { step: ran.step })?;
        outcome.seconds = started.elapsed().as_secs_f64();
        return Ok(outcome);
    }
    outcome.pruned_counts = trainer.pruned_counts();
    let mut model = trainer.model();
    drop(trainer);
    outputs.restore(&mut request, &mut model);
    let target = publish(request.output, &request.subject, &model, None)?;
    drop(model);
    outcome.quality = quality(&request, &target, threads)?;
    outcome.seconds = started.elapsed().as_secs_f64();
    let report = serde_json::to_string_pretty(&outcome).expect("a report is made of JSON values");
    crate::run_folder::write(request.output, "report.json", report.as_bytes())?;
    folder.finish(ran.step)?;
    Ok(outcome)
}

/// What training is watched by, if anything.
fn watch<'a>(
    request: &'a TrainRequest,
    options: &TrainerOptions,
    run_options: &RunOptions,
) -> Result<Option<Watch<'a>>, Error> {
    let watch = match &request.data.validation {
        Some(data) => Watch::new(&request.subject, request.teacher.as_ref(), data, run_options)?,
        None => None,
    };
    if watch.is_none() && options.length.patience.is_some() {
        return Err(Error::Usage {
            message: "there is nothing to watch patiently: no validation data".into(),
            hint: "give some: `--validation SET`, or a part of the data, `--validation 0.1`".into(),
        });
    }
    Ok(watch)
}

fn outcome(
    request: &TrainRequest,
    options: &TrainerOptions,
    ran: &Outcome,
    curve: Vec<CurvePoint>,
) -> TrainOutcome {
    TrainOutcome {
        attar_version: env!("CARGO_PKG_VERSION"),
        input: request.subject.path.clone(),
        output: request.output.to_path_buf(),
        data: request.data_path.to_path_buf(),
        data_kind: request.data.train.kind_name(),
        example_count: 0,
        validation_count: request.data.validation.as_ref().map_or(0, Dataset::example_count),
        loss: options.loss.clone(),
        optimizer: options.optimizer.clone(),
        schedule: options.schedule.clone(),
        batch_size: options.batches.size.get() * options.batches.accumulate.get(),
        seed: options.batches.seed,
        metric: None,
        best: ran.best,
        step: ran.step,
        curve,
        seconds: 0.0,
        is_stopped: ran.is_stopped,
        is_early: ran.is_early,
        quality: None,
        pruned_counts: None,
        remarks: Vec::new(),
    }
}

/// What decides the result of a run.
fn ingredients(request: &TrainRequest, options: &TrainerOptions) -> Result<Ingredients, Error> {
    let teacher = request.teacher.as_ref().map(|teacher| crc32(&teacher.path));
    Ok(Ingredients {
        input_crc32: crc32(&request.subject.path)?,
        data: request.data_path.display().to_string(),
        data_crc32: request.data.checksum(),
        options: options.clone(),
        augment: request.augment.clone(),
        teacher_crc32: teacher.transpose()?,
    })
}

/// Original and result on the validation data, where that has a metric.
fn quality(
    request: &TrainRequest,
    target: &Path,
    threads: NonZeroUsize,
) -> Result<Option<Evaluation>, Error> {
    let Some(data) = &request.data.validation else { return Ok(None) };
    let mut result = Subject::open(target)?;
    result.name = "result".into();
    let options = EvaluateOptions { runtime: &Builtin, threads, batch_size: 64, progress: &Silent };
    let mut quality = evaluate_models(&[&request.subject, &result], data, &options)?;
    // What was trained is meant to answer otherwise.
    quality.models.iter_mut().for_each(|model| model.agreement = None);
    Ok(Some(quality))
}
