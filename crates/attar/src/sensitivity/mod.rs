//! How much pruning each tensor, or each group of channels, or fewer bits for each weight cost: predicted
//! from one pass over data, and measured.

mod heat_map;
mod times;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use attar_compress::{
    BitsOptions, Calibration, Context, Estimate, Exclude, Measured, PassError, Sensitivity,
    SensitivityOptions, bits_sensitivity, group_sensitivity, ratio, sensitivity,
};
use attar_evaluate::{Dataset, Interval, Progress, Shape};
use attar_graph::Model;
use attar_runtime::{Builtin, RunOptions, Runtime, Session};
use attar_tensor::Tensor;
use serde::Serialize;

use crate::examination::{Examination, Outcome};
use crate::{CalibrationSample, Error, Subject};

pub use heat_map::heat_map;
pub use times::WeightTime;

/// What to find out of which model.
pub struct SensitivityRequest<'a> {
    pub subject: Subject,
    pub data: &'a Dataset,
    /// Examples taken of the data, spread over it.
    pub example_count: usize,
    pub question: Question,
    /// Whether the data set's metric is measured too, on all of the data.
    pub measures_metric: bool,
    /// Patterns of nodes and tensors to leave out.
    pub exclude: Vec<String>,
    pub threads: NonZeroUsize,
    pub progress: &'a dyn Progress,
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// What pruning each tensor costs.
    Tensors(SensitivityOptions),
    /// What cutting each group of channels costs.
    Groups(SensitivityOptions),
    /// What fewer bits for each weight cost.
    Bits(BitsOptions),
}

impl Question {
    fn is_measured(&self) -> bool {
        match self {
            Self::Tensors(options) | Self::Groups(options) => !options.measured.is_empty(),
            Self::Bits(options) => !options.measured.is_empty(),
        }
    }

    fn seed(&self) -> u64 {
        match self {
            Self::Tensors(options) | Self::Groups(options) => options.seed,
            Self::Bits(options) => options.seed,
        }
    }

    fn importance(&self) -> Option<String> {
        match self {
            Self::Tensors(options) | Self::Groups(options) => Some(options.importance.clone()),
            Self::Bits(_) => None,
        }
    }

    /// What a model without answer lacks.
    fn subject(&self) -> &'static str {
        match self {
            Self::Tensors(_) => "weights to prune",
            Self::Groups(_) => "channels that can be cut",
            Self::Bits(_) => "weights to quantize",
        }
    }
}

/// What was found; as JSON, what a recipe's `sensitivity` reads.
#[derive(Debug, Serialize)]
pub struct SensitivityOutcome {
    pub attar_version: &'static str,
    pub input: PathBuf,
    pub data_kind: &'static str,
    pub example_count: usize,
    /// By which weights or channels went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance: Option<String>,
    /// The metric whose changes were measured, and its value before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<(&'static str, f64)>,
    pub seconds: f64,
    /// Of fewer bits: what the products of each weight take.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<WeightTime>,
    #[serde(flatten)]
    pub found: Sensitivity,
}

/// Finds out what each tensor's weights, or each group's channels, are worth.
///
/// # Errors
/// A model or data that do not fit, or a model without anything to look at.
pub fn find_sensitivity(request: &SensitivityRequest) -> Result<SensitivityOutcome, Error> {
    let started = Instant::now();
    let (subject, progress) = (&request.subject, request.progress);
    let sample = CalibrationSample::new(request.data, subject, request.example_count, progress)?;
    let context = Context {
        calibration: Some(&sample),
        threads: request.threads,
        exclude: Exclude::new(request.exclude.clone()),
        ..Context::new(&Builtin)
    };
    crate::pipeline::check_exclude(&subject.model, &context.exclude).map_err(failed)?;
    let reference =
        request.question.is_measured().then(|| Reference::new(request, &sample)).transpose()?;
    let mut metric = None;
    if let Some((name, value)) = reference.as_ref().and_then(Reference::metric) {
        metric = Some((name, value));
    }
    let mut measure = |model: &Model, [done, total]: [usize; 2]| {
        progress.advance("measuring", done, total);
        let found = reference.as_ref().map(|reference| reference.measure(model));
        if done + 1 == total {
            progress.advance("measuring", total, total);
        }
        found.unwrap_or_else(|| Ok(Measured::default()))
    };
    let model = &subject.model;
    let found = match &request.question {
        Question::Tensors(options) => sensitivity(model, &context, options, &mut measure),
        Question::Groups(options) => group_sensitivity(model, &context, options, &mut measure),
        Question::Bits(options) => bits_sensitivity(model, &context, options, &mut measure),
    };
    let found = found.map_err(|Failure(error)| error)?;
    if found.tensors.is_empty() && found.groups.is_empty() {
        let what = request.question.subject();
        return Err(Error::Usage {
            message: format!("{} has no {what}", subject.name),
            hint: "see what it holds: `attar inspect MODEL`".into(),
        });
    }
    let times = if matches!(request.question, Question::Bits(_)) {
        let names: Vec<&str> = found.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let image = subject.preprocessing.as_ref().and_then(|p| p.image.as_ref());
        let shape = Shape { batch: 1, length: image.map_or(TOKENS, |image| image.size) };
        progress.advance("timing", 0, 1);
        let times = times::weight_times(model, &names, shape, &context);
        progress.advance("timing", 1, 1);
        times
    } else {
        Vec::new()
    };
    Ok(SensitivityOutcome {
        attar_version: env!("CARGO_PKG_VERSION"),
        input: subject.path.clone(),
        data_kind: request.data.kind_name(),
        example_count: request.example_count.min(request.data.example_count()),
        importance: request.question.importance(),
        metric,
        seconds: started.elapsed().as_secs_f64(),
        times,
        found,
    })
}

/// Tokens of the text that a model is timed on.
const TOKENS: usize = 128;

fn failed(source: PassError) -> Error {
    Error::Step { step: None, pass: "sensitivity".into(), source }
}

/// An error of either crate.
struct Failure(Error);

impl From<PassError> for Failure {
    fn from(error: PassError) -> Self {
        Self(failed(error))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// One example, or a few that run together, and the original's output for them.
struct Example {
    feeds: Vec<(String, Tensor)>,
    output: Vec<f32>,
}

/// What pruned models are held against.
struct Reference<'a> {
    request: &'a SensitivityRequest<'a>,
    examples: Vec<Example>,
    examination: Option<(Examination<'a>, Outcome)>,
}

impl<'a> Reference<'a> {
    fn new(request: &'a SensitivityRequest<'a>, sample: &CalibrationSample) -> Result<Self, Error> {
        let subject = &request.subject;
        let mut session = load(request, &subject.model)?;
        let inputs = session.inputs().to_vec();
        let mut examples = Vec::new();
        let kept = sample.for_each_batch(&inputs, &mut |feeds| {
            let feeds = feeds.iter().map(|(name, tensor)| ((*name).to_string(), (*tensor).clone()));
            examples.push(Example { feeds: feeds.collect(), output: Vec::new() });
            Ok(())
        });
        kept.map_err(failed)?;
        for example in &mut examples {
            example.output = output_of(subject, session.as_mut(), &example.feeds)?;
        }
        let mut examination = None;
        if request.measures_metric {
            let made = Examination::new(subject, session.as_ref(), request.data)?;
            let outcome = made.run(session.as_mut(), BATCH, request.progress)?;
            examination = Some((made, outcome));
        }
        Ok(Self { request, examples, examination })
    }

    /// The metric that is measured, and its value before.
    fn metric(&self) -> Option<(&'static str, f64)> {
        let (_, outcome) = self.examination.as_ref()?;
        outcome.measures.first().map(|measure| (measure.name, measure.value()))
    }

    fn measure(&self, model: &Model) -> Result<Measured, Failure> {
        let mut session = load(self.request, model)?;
        let mut sums = Vec::new();
        for example in &self.examples {
            let found = output_of(&self.request.subject, session.as_mut(), &example.feeds)?;
            let pairs = example.output.iter().zip(&found);
            sums.push(pairs.fold((0.0, 0.0), |(lost, power), (y, found)| {
                (lost + f64::from(y - found).powi(2), power + f64::from(*y).powi(2))
            }));
        }
        let output_error = Some(ratio(&sums, self.request.question.seed()));
        let mut metric = None;
        if let Some((examination, before)) = &self.examination {
            let after = examination.run(session.as_mut(), BATCH, &attar_evaluate::Silent)?;
            let pair = after.measures.first().zip(before.measures.first());
            metric = pair.map(|(after, before)| estimate(after.difference(before)));
        }
        Ok(Measured { output_error, metric })
    }
}

/// Examples run together where a metric is measured.
const BATCH: usize = 32;

fn estimate(interval: Interval) -> Estimate {
    Estimate { value: interval.value, low: interval.low, high: interval.high }
}

fn load(request: &SensitivityRequest, model: &Model) -> Result<Box<dyn Session>, Error> {
    let options = RunOptions { threads: request.threads, observed: Vec::new() };
    Builtin.load(model, &options).map_err(|source| runtime_error(&request.subject, source))
}

fn runtime_error(subject: &Subject, source: attar_runtime::RuntimeError) -> Error {
    Error::Runtime { subject: format!("{} on {}", subject.name, Builtin.name()), source }
}

/// The output that `attar.toml` names, or the first.
fn output_of(
    subject: &Subject,
    session: &mut dyn Session,
    feeds: &[(String, Tensor)],
) -> Result<Vec<f32>, Error> {
    let wanted = |name: &str| session.outputs().iter().position(|output| output.name == name);
    let index = subject.output().and_then(wanted).unwrap_or(0);
    let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let outputs = session.run(&feeds).map_err(|source| runtime_error(subject, source))?;
    let output = outputs.get(index).filter(|output| output.dtype().is_float());
    Ok(output.map_or(Vec::new(), |output| output.values::<f32>().into_owned()))
}

/// Reads what `attar sensitivity --json` wrote.
///
/// # Errors
/// A file that is not there, or is something else.
pub(crate) fn read_sensitivity(path: &Path) -> Result<Sensitivity, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::file(path))?;
    serde_json::from_str(&text).map_err(|error| Error::Recipe {
        place: path.display().to_string(),
        message: format!("it is not what `attar sensitivity --json` writes: {error}"),
    })
}
