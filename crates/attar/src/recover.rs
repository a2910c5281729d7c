//! A step of a recipe that trains: what a model lost by pruning or quantizing is won back, from
//! the original's outputs or from labels.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use attar_compress::OptionEntry;
use attar_evaluate::Progress;
use attar_graph::Model;
use attar_train::{Choice, Control, StepReport, TrainerOptions};
use serde::{Deserialize, Serialize};

use crate::training::{
    Augment, TrainDefaults, TrainOutcome, TrainProgress, TrainRequest, TrainingData, parse_choice,
    parse_schedule, shared_features, train, training_defaults,
};
use crate::{Error, Subject};

/// A step that is no pass: it needs data and time, and makes checkpoints of its own.
pub struct StageEntry {
    pub name: &'static str,
    pub summary: &'static str,
    pub options: &'static [OptionEntry],
}

/// Steps of a recipe that are no passes.
pub const STAGES: &[StageEntry] = &[StageEntry {
    name: NAME,
    summary: "train what earlier steps left: from the original's outputs, or from labels; weights \
              that are zero stay zero",
    options: OPTIONS,
}];

const NAME: &str = "recover";

const OPTIONS: &[OptionEntry] = &[
    OptionEntry {
        key: "targets",
        default: "\"original\"",
        help: "what is learned: \"original\", its outputs, which needs no labels; \"labels\" of \
               the data; or \"both\"",
    },
    OptionEntry {
        key: "features",
        default: "[\"auto\"]",
        help: "values on the way that are learned from the original too: names or patterns; \
               \"auto\", what LayerNormalization gives in both, if anything; [] for none",
    },
    OptionEntry {
        key: "loss",
        default: "by the data",
        help: "NAME or NAME:key=value,… of `attar train --list`",
    },
    OptionEntry { key: "epochs", default: "by the data", help: "times to go over the data" },
    OptionEntry { key: "steps", default: "no end", help: "steps after which it ends" },
    OptionEntry { key: "batch", default: "32", help: "examples that go through together" },
    OptionEntry { key: "learning_rate", default: "by the data", help: "highest, of AdamW" },
    OptionEntry {
        key: "augment",
        default: "\"\"",
        help: "changes of images, as in `attar train --augment`",
    },
];

/// The settings of a step that recovers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Recover {
    targets: LearnFrom,
    features: Vec<String>,
    loss: Option<String>,
    epochs: Option<NonZeroUsize>,
    steps: Option<NonZeroU64>,
    batch: NonZeroUsize,
    learning_rate: Option<f64>,
    augment: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LearnFrom {
    #[default]
    Original,
    Labels,
    Both,
}

impl Default for Recover {
    fn default() -> Self {
        Self {
            targets: LearnFrom::default(),
            features: vec!["auto".into()],
            loss: None,
            epochs: None,
            steps: None,
            batch: const { NonZeroUsize::new(32).expect("32 is not 0") },
            learning_rate: None,
            augment: String::new(),
        }
    }
}

/// What a step of training did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainingRecord {
    pub loss: Choice,
    pub step_count: u64,
    pub learning_rate: f64,
    /// Mean over the first steps, and over the last epoch.
    pub loss_first: f64,
    pub loss_last: f64,
}

/// Where and with what a step trains.
pub(crate) struct RecoverRun<'a> {
    pub(crate) original: &'a Subject,
    pub(crate) model: &'a Model,
    /// The file of what is trained, whose checksum tells runs apart.
    pub(crate) file: PathBuf,
    pub(crate) data: Option<(&'a Path, &'a TrainingData)>,
    pub(crate) threads: NonZeroUsize,
    /// Where it keeps its own checkpoints until it is done.
    pub(crate) folder: PathBuf,
    /// Becomes true when the user wants to stop.
    pub(crate) stop: &'a Arc<AtomicBool>,
    pub(crate) progress: &'a dyn Progress,
}

impl Recover {
    /// The settings, if the step is of this kind.
    ///
    /// # Errors
    /// Settings that it does not take.
    pub(crate) fn of(pass: &str, settings: &toml::Table) -> Result<Option<Self>, Error> {
        if pass != NAME {
            return Ok(None);
        }
        let fail = |message: String| Error::Recipe { place: format!("step `{NAME}`"), message };
        let recover: Self = settings.clone().try_into().map_err(|error: toml::de::Error| {
            let known = OPTIONS.iter().map(|option| option.key).collect::<Vec<_>>().join(", ");
            fail(format!("{}; its settings are {known}", error.message()))
        })?;
        recover.loss.as_deref().map(parse_choice).transpose()?;
        recover.augment()?;
        if recover.learning_rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
            return Err(fail("`learning_rate` is to be a number above 0".into()));
        }
        Ok(Some(recover))
    }

    fn augment(&self) -> Result<Augment, Error> {
        if self.augment.is_empty() { Ok(Augment::default()) } else { Augment::parse(&self.augment) }
    }

    /// Trains; `None` if it was stopped before its end.
    ///
    /// # Errors
    /// No data, data that does not fit, or a step that fails. What was done stays resumable.
    pub(crate) fn run(&self, run: &RecoverRun) -> Result<Option<(Model, TrainingRecord)>, Error> {
        let (data_path, data) = run.data.ok_or_else(|| Error::Usage {
            message: format!("`{NAME}` has nothing to learn from"),
            hint: "give it data: `--training SET`, or `--calibration SET`".into(),
        })?;
        let subject = Subject {
            name: run.file.display().to_string(),
            path: run.file.clone(),
            model: run.model.clone(),
            size_bytes: 0,
            preprocessing: preprocessing_anywhere(run.original)?,
        };
        let taught = self.targets != LearnFrom::Labels;
        let teacher = taught.then(|| run.original.clone());
        let features = match &teacher {
            Some(teacher) => self.features(&subject.model, &teacher.model)?,
            None => Vec::new(),
        };
        let options = self.options(&subject, data, taught, run.threads)?;
        let (loss, learning_rate) = (options.loss.clone(), options.schedule.learning_rate);
        let resume = run.folder.join("journal.jsonl").exists();
        let mut follow = Follow { run, first: (0.0, 0), last: 0.0 };
        let request = TrainRequest {
            subject,
            data_path,
            data,
            options,
            augment: self.augment()?,
            teacher,
            features,
            checkpoint_every: None,
            log_every: 10,
            output: &run.folder,
            resume,
        };
        let outcome: TrainOutcome = train(request, &mut follow)?;
        if outcome.is_stopped {
            return Ok(None);
        }
        let model = crate::load(&run.folder.join("model.onnx"))?;
        let (sum, count) = follow.first;
        let record = TrainingRecord {
            loss,
            step_count: outcome.step,
            learning_rate,
            loss_first: sum / count.max(1) as f64,
            loss_last: outcome.curve.last().map_or(follow.last, |point| point.loss),
        };
        Ok(Some((model, record)))
    }

    /// The features that both models have; `auto` alone may find none.
    fn features(&self, student: &Model, teacher: &Model) -> Result<Vec<String>, Error> {
        let is_auto = |name: &String| name == "auto";
        if self.features.is_empty() {
            return Ok(Vec::new());
        }
        match shared_features(student, teacher, &self.features) {
            Err(_) if self.features.iter().all(is_auto) => Ok(Vec::new()),
            found => found,
        }
    }

    fn options(
        &self,
        subject: &Subject,
        data: &TrainingData,
        taught: bool,
        threads: NonZeroUsize,
    ) -> Result<TrainerOptions, Error> {
        let optimizer = Choice::new("adamw");
        let given = self.loss.as_deref().map(parse_choice).transpose()?;
        let defaults = match training_defaults(subject, data, taught, &optimizer.name) {
            Ok(defaults) => defaults,
            Err(error) if given.is_none() => return Err(error),
            Err(_) => TrainDefaults::default(),
        };
        let named = match (self.targets, defaults.loss) {
            // Labels are there and are not asked for.
            (LearnFrom::Original, "distillation") => "kl",
            (_, name) => name,
        };
        let loss = given.unwrap_or_else(|| Choice::new(named));
        let rate = self.learning_rate.unwrap_or(defaults.learning_rate);
        let mut options =
            TrainerOptions::new(loss, optimizer, parse_schedule("cosine", rate, 0.05)?);
        options.batches.size = self.batch;
        options.length.steps_max = self.steps.map(NonZeroU64::get);
        options.length.epochs = match (self.epochs, self.steps) {
            (Some(epochs), _) => epochs.get(),
            (None, Some(_)) => 0,
            (None, None) => defaults.epochs,
        };
        options.clip_norm = Some(1.0);
        options.machine.threads = threads;
        Ok(options)
    }
}

/// The original's preprocessing, its tokenizer named so that it is found from any folder.
fn preprocessing_anywhere(
    original: &Subject,
) -> Result<Option<attar_evaluate::Preprocessing>, Error> {
    let mut preprocessing = original.preprocessing.clone();
    if let Some(text) = preprocessing.as_mut().and_then(|p| p.text.as_mut()) {
        let path = original.folder().join(&text.tokenizer);
        let path = path.canonicalize().map_err(Error::file(&path))?;
        text.tokenizer = path;
    }
    Ok(preprocessing)
}

/// Steps whose mean loss stands for that of the beginning.
const FIRST_STEPS: u64 = 10;

/// Follows a training, and stops it when the user does.
struct Follow<'a> {
    run: &'a RecoverRun<'a>,
    first: (f64, u64),
    last: f64,
}

impl TrainProgress for Follow<'_> {
    fn step(&mut self, report: &StepReport) -> Control {
        if report.step <= FIRST_STEPS {
            self.first = (self.first.0 + report.loss, self.first.1 + 1);
        }
        self.last = report.loss;
        self.run.progress.advance(NAME, report.step as usize, report.step_count as usize);
        if self.run.stop.load(Ordering::SeqCst) { Control::Stop } else { Control::GoOn }
    }
}
