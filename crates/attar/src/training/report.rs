//! How a training is followed: the journal, and whoever watches.

use attar_train::{Control, EpochReport, Monitor, StepReport, TrainerOptions, ValidationReport};

use super::folder::{CurvePoint, Entry, StepEntry, TrainFolder};
use crate::Error;

/// What a training is made of, once all is settled.
pub struct TrainBegun<'a> {
    pub data_kind: &'static str,
    pub example_count: usize,
    pub validation_count: usize,
    pub options: &'a TrainerOptions,
    /// Tensors that change.
    pub weight_count: usize,
    /// What it is watched by.
    pub metric: Option<&'static str>,
    pub remarks: &'a [String],
}

/// Follows a training, and may stop it.
pub trait TrainProgress {
    fn begun(&mut self, begun: &TrainBegun) {
        let _ = begun;
    }

    /// After every step.
    fn step(&mut self, report: &StepReport) -> Control {
        let _ = report;
        Control::GoOn
    }

    /// After every validation.
    fn validation(&mut self, report: &ValidationReport) {
        let _ = report;
    }

    /// After every epoch.
    fn epoch(&mut self, report: &EpochReport) {
        let _ = report;
    }
}

impl TrainProgress for attar_evaluate::Silent {}

/// Writes the journal, and passes on.
pub(crate) struct Reporter<'a> {
    folder: &'a mut TrainFolder,
    progress: &'a mut dyn TrainProgress,
    log_every: u64,
    /// Examples and seconds since the last line of the journal.
    since: (usize, f64),
    /// Why the journal could not be written, which ends the run.
    pub(crate) failed: Option<Error>,
}

impl<'a> Reporter<'a> {
    pub(crate) fn new(
        folder: &'a mut TrainFolder,
        progress: &'a mut dyn TrainProgress,
        log_every: u64,
    ) -> Self {
        Self { folder, progress, log_every: log_every.max(1), since: (0, 0.0), failed: None }
    }

    fn append(&mut self, entry: &Entry) -> Control {
        match self.folder.append(entry) {
            Ok(()) => Control::GoOn,
            Err(error) => {
                self.failed = Some(error);
                Control::Stop
            }
        }
    }
}

impl Monitor for Reporter<'_> {
    fn step(&mut self, report: &StepReport) -> Control {
        self.since.0 += report.example_count;
        self.since.1 += report.seconds;
        let mut control = Control::GoOn;
        if report.step.is_multiple_of(self.log_every) || report.step == report.step_count {
            let (examples, seconds) = std::mem::take(&mut self.since);
            control = self.append(&Entry::Step(StepEntry {
                step: report.step,
                epoch: report.epoch + 1,
                loss: report.loss,
                learning_rate: report.learning_rate,
                gradient_norm: report.gradient_norm,
                examples_per_second: examples as f64 / seconds.max(1e-9),
            }));
        }
        match self.progress.step(report) {
            Control::Stop => Control::Stop,
            Control::GoOn => control,
        }
    }

    fn epoch(&mut self, report: &EpochReport) -> Control {
        let point = CurvePoint {
            epoch: report.epoch + 1,
            step: report.step,
            loss: report.loss,
            learning_rate: report.learning_rate,
            metric: report.metric,
            is_best: report.is_best,
            seconds: report.seconds,
        };
        self.folder.keep(point.clone());
        self.progress.epoch(report);
        self.append(&Entry::Epoch(point))
    }

    fn validation(&mut self, report: &ValidationReport) -> Control {
        self.progress.validation(report);
        self.append(&Entry::Validation {
            step: report.step,
            epoch: report.epoch + 1,
            metric: report.metric,
            is_best: report.is_best,
            seconds: report.seconds,
        })
    }
}
