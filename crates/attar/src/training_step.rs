//! What steps of a recipe that train have in common: their settings, and the run itself.

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

/// What a step learns from, and how long.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct TrainingSettings {
    targets: LearnFrom,
    features: Vec<String>,
    loss: Option<String>,
    pub(crate) epochs: Option<usize>,
    steps: Option<NonZeroU64>,
    batch: NonZeroUsize,
    learning_rate: Option<f64>,
    augment: String,
}

/// The reference of [`TrainingSettings`].
pub(crate) const TRAINING_OPTIONS: [OptionEntry; 8] = [
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LearnFrom {
    #[default]
    Original,
    Labels,
    Both,
}

impl Default for TrainingSettings {
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
pub(crate) struct TrainingRun<'a> {
    /// The name of the step.
    pub(crate) name: &'static str,
    pub(crate) original: &'a Subject,
    /// What is trained; the checksum of its file tells runs apart.
    pub(crate) subject: &'a Subject,
    pub(crate) data: Option<(&'a Path, &'a TrainingData)>,
    pub(crate) threads: NonZeroUsize,
    /// Where it keeps its own checkpoints until it is done.
    pub(crate) folder: PathBuf,
    /// Becomes true when the user wants to stop.
    pub(crate) stop: &'a Arc<AtomicBool>,
    pub(crate) progress: &'a dyn Progress,
}

impl TrainingSettings {
    /// What types do not say of the settings of the step `name`.
    ///
    /// # Errors
    /// A loss, augmentation or rate that is none.
    pub(crate) fn check(&self, name: &str) -> Result<(), Error> {
        self.loss.as_deref().map(parse_choice).transpose()?;
        self.augment()?;
        if self.learning_rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
            let message = "`learning_rate` is to be a number above 0".into();
            return Err(Error::Recipe { place: format!("step `{name}`"), message });
        }
        Ok(())
    }

    fn augment(&self) -> Result<Augment, Error> {
        if self.augment.is_empty() { Ok(Augment::default()) } else { Augment::parse(&self.augment) }
    }

    /// Trains, with what `adjust` makes of the options; `None` if it was stopped before its end.
    ///
    /// # Errors
    /// No data, data that does not fit, or a step that fails. What was done stays resumable.
    pub(crate) fn run(
        &self,
        run: &TrainingRun,
        adjust: impl FnOnce(&mut TrainerOptions),
    ) -> Result<Option<(Model, TrainingRecord)>, Error> {
        let (data_path, data) = run.data.ok_or_else(|| Error::Usage {
            message: format!("`{}` has nothing to learn from", run.name),
            hint: "give it data: `--training SET`, or `--calibration SET`".into(),
        })?;
        let subject = run.subject.clone();
        let taught = self.targets != LearnFrom::Labels;
        let teacher = taught.then(|| run.original.clone());
        let features = match &teacher {
            Some(teacher) => self.features(&subject, teacher)?,
            None => Vec::new(),
        };
        let mut options = self.options(&subject, data, taught, run.threads)?;
        adjust(&mut options);
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

    /// The features that both models have; `auto` alone may find none, and takes none of models
    /// that split texts otherwise.
    fn features(&self, student: &Subject, teacher: &Subject) -> Result<Vec<String>, Error> {
        let is_auto = self.features.iter().all(|name| name == "auto");
        let tokenizer = |subject: &Subject| {
            let text = subject.preprocessing.as_ref().and_then(|p| p.text.as_ref())?;
            std::fs::read(subject.folder().join(&text.tokenizer)).ok()
        };
        if self.features.is_empty() || (is_auto && tokenizer(student) != tokenizer(teacher)) {
            return Ok(Vec::new());
        }
        match shared_features(&student.model, &teacher.model, &self.features) {
            Err(_) if is_auto => Ok(Vec::new()),
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
            (Some(epochs), _) => epochs,
            (None, Some(_)) => 0,
            (None, None) => defaults.epochs,
        };
        options.clip_norm = Some(1.0);
        options.machine.threads = threads;
        Ok(options)
    }
}

/// Steps whose mean loss stands for that of the beginning.
const FIRST_STEPS: u64 = 10;

/// Follows a training, and stops it when the user does.
struct Follow<'a> {
    run: &'a TrainingRun<'a>,
    first: (f64, u64),
    last: f64,
}

impl TrainProgress for Follow<'_> {
    fn step(&mut self, report: &StepReport) -> Control {
        if report.step <= FIRST_STEPS {
            self.first = (self.first.0 + report.loss, self.first.1 + 1);
        }
        self.last = report.loss;
        self.run.progress.advance(self.run.name, report.step as usize, report.step_count as usize);
        if self.run.stop.load(Ordering::SeqCst) { Control::Stop } else { Control::GoOn }
    }
}
