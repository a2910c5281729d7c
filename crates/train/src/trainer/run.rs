//! The loop over the data.

use std::sync::mpsc::Receiver;
use std::time::Instant;

use super::producer::{Made, produce};
use super::{Checkpoints, Trainer};
use crate::order::batch_count;
use crate::{
    Control, EpochReport, Monitor, Source, StepReport, TrainError, Validate, ValidationReport,
};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Steps in all, those of earlier sessions included.
    pub step: u64,
    /// Epochs that are done.
    pub epoch: usize,
    /// The best metric.
    pub best: Option<f64>,
    /// The step that it was measured after.
    pub best_step: Option<u64>,
    /// Whether the monitor stopped it before its end.
    pub is_stopped: bool,
    /// Whether validations no longer got better.
    pub is_early: bool,
}

impl Trainer {
    /// Goes over the data until the run is done, or the monitor stops it. Afterwards
    /// [`model`](Self::model) is the best that was measured, or without a measure the last.
    ///
    /// # Errors
    /// Data, a node or a metric that fails, a loss that is not finite or diverges, or a checkpoint
    /// that cannot be written or belongs to another run. The checkpoints written before stay.
    pub fn run(
        &mut self,
        source: &dyn Source,
        checkpoints: Option<&Checkpoints>,
        monitor: &mut dyn Monitor,
        validate: Option<&mut dyn Validate>,
    ) -> Result<Outcome, TrainError> {
        if let Some(checkpoints) = checkpoints.filter(|checkpoints| !checkpoints.resume) {
            Self::clear(checkpoints)?;
        }
        let resumed = checkpoints.filter(|checkpoints| checkpoints.resume);
        if let Some(path) = resumed.map_or(Ok(None), |checkpoints| self.resume(checkpoints))? {
            monitor.resumed(&path, self.progress.step);
        }
        let options = self.options.clone();
        let batch_count = batch_count(source.len(), &options.batches);
        if source.is_empty() {
            return Err(TrainError::NoData);
        }
        let steps_each = batch_count.div_ceil(options.batches.accumulate.get()) as u64;
        let step_count = steps_each.saturating_mul(options.length.epochs as u64);
        let step_count = options.length.steps_max.map_or(step_count, |max| step_count.min(max));
        self.check_pruning(step_count)?;
        std::thread::scope(|scope| {
            let epochs = self.progress.epoch..options.length.epochs;
            let first = self.progress.batch;
            let made = produce(scope, source, &options.batches, epochs, first);
            let now = Instant::now();
            let example_count_before = self.progress.example_count;
            let mut session = Session {
                trainer: self,
                made,
                checkpoints,
                monitor,
                validate,
                batch_count,
                step_count,
                is_changed: false,
                saved: now,
                epoch_started: now,
                example_count_before,
            };
            let is_stopped = session.run()? == Control::Stop;
            let progress = &session.trainer.progress;
            Ok(Outcome {
                step: progress.step,
                epoch: progress.epoch,
                best: progress.best.map(|best| best.metric),
                best_step: progress.best.map(|best| best.step),
                is_stopped: is_stopped && !session.is_over(),
                is_early: progress.is_early,
            })
        })
    }
}

/// One call of [`Trainer::run`].
struct Session<'a, 'v> {
    trainer: &'a mut Trainer,
    made: Receiver<Made>,
    checkpoints: Option<&'a Checkpoints>,
    monitor: &'a mut dyn Monitor,
    validate: Option<&'a mut (dyn Validate + 'v)>,
    /// Batches of an epoch.
    batch_count: usize,
    step_count: u64,
    /// Whether there is something that no checkpoint holds.
    is_changed: bool,
    /// Time of the last checkpoint.
    saved: Instant,
    epoch_started: Instant,
    /// Examples of the epoch that were done before this session.
    example_count_before: u64,
}

impl Session<'_, '_> {
    fn run(&mut self) -> Result<Control, TrainError> {
        let mut control = Control::GoOn;
        loop {
            // A run that is stopped after a step has this before it still.
            if (control == Control::GoOn || self.is_over()) && self.settle()? == Control::Stop {
                control = Control::Stop;
            }
            if control == Control::Stop || self.is_over() {
                break;
            }
            if self.is_save_due() {
                self.save()?;
            }
            control = self.step()?;
        }
        if self.is_changed {
            self.save()?;
        }
        Ok(control)
    }

    /// Whether there is nothing left to do.
    fn is_over(&self) -> bool {
        let progress = &self.trainer.progress;
        progress.is_early
            || progress.step >= self.step_count
            || progress.epoch >= self.trainer.options.length.epochs
    }

    fn step(&mut self) -> Result<Control, TrainError> {
        let begun = Instant::now();
        let ended = || TrainError::data("the data ended before the epoch", "check the data set");
        let batches = self.made.recv().map_err(|_| ended())??;
        let data_seconds = begun.elapsed().as_secs_f64();
        let trainer = &mut *self.trainer;
        let learning_rate = trainer.options.schedule.rate(trainer.progress.step, self.step_count);
        let count = batches.len();
        trainer.note_pruning(self.step_count);
        trainer.note_scales(self.step_count);
        let outcome = trainer.step(batches, learning_rate)?;
        self.is_changed = true;
        let (progress, length) = (&mut trainer.progress, &trainer.options.length);
        progress.batch += count;
        if !progress.note(outcome.loss, outcome.example_count, length.divergence) {
            let (step, loss, first) =
                (progress.step, progress.loss_smoothed, progress.loss_at_first);
            return Err(TrainError::Diverged { step, loss, first });
        }
        Ok(self.monitor.step(&StepReport {
            step: progress.step,
            step_count: self.step_count,
            epoch: progress.epoch,
            epoch_count: length.epochs,
            loss: outcome.loss,
            learning_rate,
            gradient_norm: outcome.gradient_norm,
            example_count: outcome.example_count,
            seconds: begun.elapsed().as_secs_f64(),
            data_seconds,
        }))
    }

    /// What is due between two steps: a validation, and the end of an epoch.
    fn settle(&mut self) -> Result<Control, TrainError> {
        let is_epoch_end = self.trainer.progress.batch >= self.batch_count;
        let progress = &self.trainer.progress;
        let is_due = match self.trainer.options.length.validate_every {
            Some(every) => progress.step.is_multiple_of(every.max(1)),
            None => is_epoch_end,
        };
        let is_due = is_due || progress.step == self.step_count;
        let is_new = progress.step > 0 && progress.validated_step != progress.step;
        let measured = if is_due && is_new { self.validate()? } else { None };
        let mut control = Control::GoOn;
        if let Some(report) = &measured {
            control = self.monitor.validation(report);
        }
        if is_epoch_end && self.end_epoch(measured.as_ref()) == Control::Stop {
            control = Control::Stop;
        }
        Ok(control)
    }

    fn validate(&mut self) -> Result<Option<ValidationReport>, TrainError> {
        let Some(validate) = &mut self.validate else { return Ok(None) };
        let begun = Instant::now();
        let trainer = &mut *self.trainer;
        let metric = validate.measure(&trainer.model_with(trainer.measured()))?;
        // A model with more weights than were asked for is no result, however good.
        let is_candidate = !trainer.is_pruning(self.step_count);
        let is_best = if is_candidate {
            trainer.progress.measured(metric, validate.higher_is_better())
        } else {
            trainer.progress.validated_step = trainer.progress.step;
            false
        };
        self.is_changed = true;
        if is_best {
            trainer.best = Some(trainer.measured().clone());
            if let Some(checkpoints) = self.checkpoints {
                trainer.save_best(checkpoints)?;
            }
        }
        let progress = &mut trainer.progress;
        let patience = trainer.options.length.patience;
        progress.is_early =
            patience.is_some_and(|patience| progress.stale_count >= patience.max(1));
        Ok(Some(ValidationReport {
            epoch: progress.epoch,
            step: progress.step,
            metric,
            best: progress.best.map_or(metric, |best| best.metric),
            is_best,
            seconds: begun.elapsed().as_secs_f64(),
        }))
    }

    fn end_epoch(&mut self, measured: Option<&ValidationReport>) -> Control {
        let (progress, options) = (&mut self.trainer.progress, &self.trainer.options);
        let report = EpochReport {
            epoch: progress.epoch,
            epoch_count: options.length.epochs,
            step: progress.step,
            loss: progress.loss_sum / progress.example_count.max(1) as f64,
            learning_rate: options.schedule.rate(progress.step.saturating_sub(1), self.step_count),
            metric: measured.map(|report| report.metric),
            is_best: measured.is_some_and(|report| report.is_best),
            example_count: progress.example_count - self.example_count_before,
            seconds: self.epoch_started.elapsed().as_secs_f64(),
        };
        progress.end_epoch();
        self.is_changed = true;
        self.epoch_started = Instant::now();
        self.example_count_before = 0;
        self.monitor.epoch(&report)
    }

    fn is_save_due(&self) -> bool {
        let Some(checkpoints) = self.checkpoints.filter(|_| self.is_changed) else { return false };
        let step = self.trainer.progress.step;
        let by_steps =
            checkpoints.every_steps.is_some_and(|every| step.is_multiple_of(every.max(1)));
        let seconds = self.saved.elapsed().as_secs();
        by_steps || checkpoints.every_seconds.is_some_and(|every| seconds >= every)
    }

    fn save(&mut self) -> Result<(), TrainError> {
        if let Some(checkpoints) = self.checkpoints {
            self.trainer.save(checkpoints)?;
        }
        self.saved = Instant::now();
        self.is_changed = false;
        Ok(())
    }
}
