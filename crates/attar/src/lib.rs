//! attar turns a trained network into a small, fast one and proves what that cost.
//!
//! This is the public interface: everything the command line does is a call here.

mod aware;
mod calibration;
mod compress;
mod converting;
mod error;
mod evaluation;
mod examination;
mod heap;
mod importing;
mod inspect;
mod layers;
mod making;
mod measure;
mod pipeline;
mod recipe;
mod recover;
mod register;
mod run_folder;
mod runtimes;
mod sensitivity;
mod stage_steps;
mod stages;
mod step_measures;
mod subject;
mod training;
mod training_step;
mod vocabulary;

pub use attar_compress::{
    BitsOptions, Estimate, GroupSensitivity, IMPORTANCES, ImportanceEntry, Level, LevelSensitivity,
    OptionEntry, PASSES, PassEntry, Sensitivity, SensitivityOptions, TensorSensitivity, levels,
};
pub use attar_evaluate::{
    Agreement, DataKind, Dataset, Interval, Invariance, Latency, Progress, Shape, Silent, Split,
    TokenizerKind, TopicsSummary, WordnetSummary, prepare_wordnet, prepare_wordnet_topics,
};
pub use attar_graph::Model;
pub use attar_import::{ARCHITECTURES, Architecture, ArchitectureOption, COMMON_OPTIONS};
pub use attar_ops::{Bindings, OPERATORS, has_gradient};
pub use attar_runtime::{RunOptions, Runtime};
pub use attar_train::{
    Choice, Control, EpochReport, LOSSES, OPTIMIZERS, PRUNE_IMPORTANCES, PruneOptions, PruneScope,
    Schedule, SettingEntry, Span, StepReport, TrainerOptions, ValidationReport,
};
pub use calibration::CalibrationSample;
pub use compress::{
    BudgetCheck, CompressOutcome, CompressRequest, compress, dry_run, early_warnings,
};
pub use converting::{ConvertOutcome, ConvertRequest, convert};
pub use error::Error;
pub use evaluation::{
    EvaluateOptions, Evaluation, LatencyRow, MetricResult, ModelQuality, RuntimeInvariance,
    evaluate_models, latency_of, runtime_invariance,
};
pub use importing::{ImportOutcome, ImportRequest, import};
pub use inspect::{ConstantRow, Inspection, NodeRow, OperatorRow, RoleRow, TreeRow, inspect};
pub use layers::{LayerChange, NodeTime, Work, node_times};
pub use making::{NewRequest, TokenizerOutcome, TokenizerRequest, new_model, new_tokenizer};
pub use pipeline::StepOutcome;
pub use recipe::{Budget, Recipe, Step};
pub use runtimes::{RUNTIME_NAMES, default_threads, runtime};
pub use sensitivity::{
    Question, SensitivityOutcome, SensitivityRequest, WeightTime, find_sensitivity, heat_map,
};
pub use stages::{STAGES, StageEntry};
pub use step_measures::{RuntimeTime, StepMeasures, StepMetric};
pub use subject::Subject;
pub use training::{
    Augment, CurvePoint, TrainBegun, TrainDefaults, TrainOutcome, TrainProgress, TrainRequest,
    TrainingData, Validation, parse_choice, parse_schedule, set_choice, shared_features, train,
    training_defaults,
};
pub use training_step::TrainingRecord;

use std::path::Path;

/// Reads a model.
///
/// # Errors
/// A file that is not there or no ONNX model, naming the place.
pub fn load(path: &Path) -> Result<Model, Error> {
    attar_onnx::load(path).map_err(|source| Error::Model { path: path.into(), source })
}

/// Writes a text beside its target and renames it into place.
///
/// # Errors
/// What writing reports.
pub fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path));
    written.map_err(Error::file(path))
}

/// Writes a model beside its target and renames it into place.
///
/// # Errors
/// What writing reports.
pub fn save(model: &Model, path: &Path) -> Result<(), Error> {
    let options = attar_onnx::SaveOptions::default();
    attar_onnx::save(model, path, &options)
        .map_err(|source| Error::Model { path: path.into(), source })
}
