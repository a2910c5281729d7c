//! How a run reports, is measured, and is told to stop.

use std::path::Path;

use attar_graph::Model;

use crate::TrainError;

/// Whether a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    GoOn,
    /// Ends the run after a checkpoint is written.
    Stop,
}

/// Follows a run.
pub trait Monitor {
    /// After every step.
    fn step(&mut self, report: &StepReport) -> Control;

    /// After every epoch, its validation included.
    fn epoch(&mut self, report: &EpochReport) -> Control;

    /// After every validation, those at the ends of epochs included.
    fn validation(&mut self, report: &ValidationReport) -> Control {
        let _ = report;
        Control::GoOn
    }

    /// Before the first step of a run that goes on from a checkpoint, after `step` steps.
    fn resumed(&mut self, checkpoint: &Path, step: u64) {
        let _ = (checkpoint, step);
    }
}

/// A monitor that lets everything go on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn step(&mut self, _: &StepReport) -> Control {
        Control::GoOn
    }

    fn epoch(&mut self, _: &EpochReport) -> Control {
        Control::GoOn
    }
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Steps of the whole run, unless it stops early.
    pub step_count: u64,
    /// From 0.
    pub epoch: usize,
    pub epoch_count: usize,
    /// Mean over the step's examples.
    pub loss: f64,
    pub learning_rate: f64,
    /// Norm of all gradients before they were clipped; `None` where no clipping was asked for.
    pub gradient_norm: Option<f64>,
    pub example_count: usize,
    /// For data and computing.
    pub seconds: f64,
    /// Of these, what was waited for data.
    pub data_seconds: f64,
}

/// What an epoch did.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochReport {
    /// From 0.
    pub epoch: usize,
    pub epoch_count: usize,
    pub step: u64,
    /// Mean over the epoch's examples.
    pub loss: f64,
    pub learning_rate: f64,
    /// Of the validation at its end.
    pub metric: Option<f64>,
    pub is_best: bool,
    /// Of this session: without those of a run that it goes on from.
    pub example_count: u64,
    /// Of this session.
    pub seconds: f64,
}

/// What a validation found.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidationReport {
    pub epoch: usize,
    pub step: u64,
    pub metric: f64,
    /// The best so far, this one included.
    pub best: f64,
    pub is_best: bool,
    pub seconds: f64,
}

/// Measures a model as it stands.
pub trait Validate {
    /// The metric of `model`: the trained one with its present weights (their moving average, where
    /// one is kept). Tensors of it that are kept cost a copy in the next step.
    ///
    /// # Errors
    /// A model or data that cannot be measured: [`TrainError::data`].
    fn measure(&mut self, model: &Model) -> Result<f64, TrainError>;

    fn higher_is_better(&self) -> bool {
        true
    }
}
