//! The loop over epochs.

use std::time::Instant;

use super::{Checkpoints, Trainer};
use crate::order::{BATCH, batch_count, batches_of};
use crate::{Control, EpochReport, Monitor, Rng, Source, StepReport, TrainError, Validate};

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Steps in all, those of earlier sessions included.
    pub step: u64,
    pub epoch: usize,
    pub best: Option<f64>,
    /// Whether the monitor stopped it: a resumed run has more to do.
    pub is_stopped: bool,
    /// Whether validations no longer got better.
    pub is_early: bool,
}

impl Trainer {
    /// Goes over the data until the run is done, or the monitor stops it. The model is afterwards
    /// the best that was measured, or without a measure the last.
    ///
    /// # Errors
    /// Data, a node or a metric that fails, a loss that is not finite or diverges, or a checkpoint
    /// that cannot be written.
    pub fn run(
        &mut self,
        source: &dyn Source,
        checkpoints: Option<&Checkpoints>,
        monitor: &mut dyn Monitor,
        validate: Option<&mut dyn Validate>,
    ) -> Result<Outcome, TrainError> {
        let _ = (checkpoints, validate);
        if source.is_empty() {
            return Err(TrainError::NoData);
        }
        let length = self.options.length.clone();
        let batches = self.options.batches.clone();
        let steps_each = batch_count(source.len(), &batches).div_ceil(batches.accumulate.get());
        let step_count = (steps_each * length.epochs) as u64;
        for epoch in 0..length.epochs {
            let started = Instant::now();
            let mut sum = 0.0;
            let mut examples = 0;
            let plan = batches_of(source, &batches, epoch as u64);
            for (group, indices) in plan.chunks(batches.accumulate.get()).enumerate() {
                let begun = Instant::now();
                let mut made = Vec::new();
                for (index, indices) in indices.iter().enumerate() {
                    let place = (group * batches.accumulate.get() + index) as u64;
                    let mut draw = Rng::new(&[batches.seed, BATCH, epoch as u64, place]);
                    let indices: Vec<usize> = indices.iter().map(|&i| i as usize).collect();
                    made.push(source.batch(&indices, &mut draw)?);
                }
                let data_seconds = begun.elapsed().as_secs_f64();
                let learning_rate = self.options.schedule.rate(self.step, step_count);
                let outcome = self.step(made, learning_rate)?;
                sum += outcome.loss * outcome.example_count as f64;
                examples += outcome.example_count as u64;
                let control = monitor.step(&StepReport {
                    step: self.step,
                    step_count,
                    epoch,
                    epoch_count: length.epochs,
                    loss: outcome.loss,
                    learning_rate,
                    gradient_norm: outcome.gradient_norm,
                    example_count: outcome.example_count,
                    seconds: begun.elapsed().as_secs_f64(),
                    data_seconds,
                });
                if control == Control::Stop {
                    return Ok(Outcome {
                        step: self.step,
                        epoch,
                        best: None,
                        is_stopped: true,
                        is_early: false,
                    });
                }
            }
            monitor.epoch(&EpochReport {
                epoch,
                epoch_count: length.epochs,
                step: self.step,
                loss: sum / examples.max(1) as f64,
                learning_rate: self.options.schedule.rate(self.step, step_count),
                metric: None,
                is_best: false,
                example_count: examples,
                seconds: started.elapsed().as_secs_f64(),
            });
        }
        let epoch = length.epochs;
        Ok(Outcome { step: self.step, epoch, best: None, is_stopped: false, is_early: false })
    }
}
