//! One step: forward and backward over its batches, and the change of the weights.

use std::sync::Arc;

use attar_graph::Value;
use attar_ops::Flow;
use attar_ops::optimize::{average, merged, square_sum, update};
use attar_tensor::Tensor;

use super::Trainer;
use crate::order::STEP;
use crate::{Batch, LossRun, Rng, StepContext, Tape, TrainError, Update};

/// What one step found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// Mean over the examples.
    pub loss: f64,
    /// Of all gradients, before they were clipped; `None` where no clipping was asked for.
    pub gradient_norm: Option<f64>,
    pub example_count: usize,
}

/// Added to a norm before it is divided by.
const NORM_EPSILON: f64 = 1e-6;

impl Trainer {
    /// One step over one or more batches. A batch counts by its examples: batches of like size
    /// together give the gradient of one large batch.
    ///
    /// # Errors
    /// A node that fails, targets that do not fit, or values that are not finite; weights are then
    /// as before the step, unless only a weight itself was not finite.
    pub fn step(
        &mut self,
        batches: Vec<Batch>,
        learning_rate: f64,
    ) -> Result<StepOutcome, TrainError> {
        let threads = Arc::clone(&self.threads);
        let mut replaced = Vec::new();
        let outcome = threads.install(|| self.step_here(batches, learning_rate, &mut replaced));
        if outcome.is_err() {
            // In reverse, so that the oldest contents come last.
            for (variable, tensor) in replaced.into_iter().rev() {
                self.variables[variable] = tensor;
            }
        } else {
            replaced.into_iter().for_each(|(_, tensor)| self.pool.recycle(tensor));
        }
        outcome
    }

    /// The step itself; `replaced` gets the state that it replaces.
    fn step_here(
        &mut self,
        batches: Vec<Batch>,
        learning_rate: f64,
        replaced: &mut Vec<(usize, Tensor)>,
    ) -> Result<StepOutcome, TrainError> {
        let example_count: usize = batches.iter().map(|batch| batch.example_count).sum();
        let mut sums: Vec<Option<Flow>> = vec![None; self.trained().len()];
        let mut loss = 0.0;
        let mut done = Vec::with_capacity(batches.len());
        for (index, batch) in batches.into_iter().enumerate() {
            let share = batch.example_count as f64 / example_count.max(1) as f64;
            let seed = [self.options.batches.seed, STEP, self.progress.step, index as u64];
            let context = StepContext { seed: Rng::new(&seed).next_u64() };
            // What a batch holds is shared, not copied.
            done.push((batch.clone(), context));
            let (of_batch, updates) = self.flow(batch, share, context, &mut sums)?;
            loss += share * of_batch;
            // Running statistics go on with the next batch.
            for (variable, tensor) in updates {
                let old = std::mem::replace(&mut self.variables[variable], tensor);
                replaced.push((variable, old));
            }
        }
        let gradient_norm =
            self.change(sums, learning_rate, loss).map_err(|error| match error {
                TrainError::NotFinite { step, loss, culprit } => {
                    let culprit = self.gradient_culprit(&done).unwrap_or(culprit);
                    TrainError::NotFinite { step, loss, culprit }
                }
                error => error,
            })?;
        Ok(StepOutcome { loss, gradient_norm, example_count })
    }

    /// Runs a batch forward and backward: its loss, and new contents of state.
    fn flow(
        &self,
        batch: Batch,
        share: f64,
        context: StepContext,
        sums: &mut [Option<Flow>],
    ) -> Result<(f64, Vec<(usize, Tensor)>), TrainError> {
        let (tape, pool) = (&self.tape, &self.pool);
        let feeds = feeds_of(tape, &batch)?;
        let targets = batch.targets;
        let mut recording = tape.forward(&self.variables, feeds.clone(), context, pool)?;
        let run =
            LossRun { outputs: &recording.outputs, targets: &targets, scale: share as f32, pool };
        let measured = self.loss.measure(&run)?;
        if !measured.loss.is_finite() {
            let step = self.progress.step + 1;
            let culprit = self.culprit(&feeds, context);
            return Err(TrainError::NotFinite { step, loss: measured.loss, culprit });
        }
        let updates = std::mem::take(&mut recording.updates);
        let mut gradients = measured.gradients;
        gradients.resize(recording.outputs.len(), None);
        tape.backward(&self.variables, recording, gradients, sums, pool)?;
        Ok((measured.loss, updates))
    }

    /// Changes the weights by their gradients.
    fn change(
        &mut self,
        sums: Vec<Option<Flow>>,
        learning_rate: f64,
        loss: f64,
    ) -> Result<Option<f64>, TrainError> {
        let merge = |sum: Option<Flow>| Some(merged(sum?, &self.pool));
        let mut gradients: Vec<Option<Flow>> = sums.into_iter().map(merge).collect();
        self.prune(&mut gradients);
        self.hold_scales(&mut gradients);
        for (gradient, held) in gradients.iter_mut().zip(&self.held) {
            if let (Some(gradient), Some(held)) = (gradient, held) {
                held.hold(gradient);
            }
        }
        let (norm, scale) = self.clipping(&gradients, loss)?;
        let step = self.progress.step + 1;
        let decays_all = self.options.weights.decay_vectors;
        let rule = |decays| self.optimizer.rule(&Update { scale, learning_rate, step, decays });
        let rules = [rule(false), rule(true)];
        for (index, gradient) in gradients.into_iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let weight = &mut self.variables[index];
            let rule = &rules[usize::from(decays_all || weight.rank() > 1)];
            if !update(rule.as_ref(), weight, &gradient, &mut self.moments[index]) {
                let name = &self.tape.trained()[index];
                let is_finite = square_sum(&gradient).is_finite();
                let of = if is_finite { "" } else { "the gradient of " };
                let culprit = format!("{of}`{name}` is not finite");
                return Err(TrainError::NotFinite { step, loss, culprit });
            }
            match gradient {
                Flow::Dense(tensor) | Flow::Rows { rows: tensor, .. } => self.pool.recycle(tensor),
            }
        }
        self.progress.step = step;
        self.move_average();
        Ok(norm)
    }

    /// The norm of all gradients, where clipping asks for it, and what they are multiplied by.
    fn clipping(
        &self,
        gradients: &[Option<Flow>],
        loss: f64,
    ) -> Result<(Option<f64>, f32), TrainError> {
        let Some(norm_max) = self.options.clip_norm else { return Ok((None, 1.0)) };
        let mut sum = 0.0;
        let named = gradients.iter().zip(self.trained());
        // From the loss backwards, so that the first one found is where it began.
        for (gradient, name) in named.rev() {
            let squares = gradient.as_ref().map_or(0.0, square_sum);
            if !squares.is_finite() {
                let step = self.progress.step + 1;
                let culprit = format!("the gradient of `{name}` is not finite");
                return Err(TrainError::NotFinite { step, loss, culprit });
            }
            sum += squares;
        }
        let norm = sum.sqrt();
        Ok((Some(norm), (norm_max / (norm + NORM_EPSILON)).min(1.0) as f32))
    }

    /// At first the average follows faster, so that the first weights do not linger in it.
    fn move_average(&mut self) {
        let (Some(averages), Some(keep)) = (&mut self.average, self.options.weights.average) else {
            return;
        };
        let step = self.progress.step as f64;
        let keep = keep.min((1.0 + step) / (10.0 + step));
        for (to, from) in averages.iter_mut().zip(&self.variables) {
            average(to.slice_mut::<f32>(), from.slice::<f32>(), keep);
        }
    }
}

/// The feeds in the order of the tape's inputs.
pub(super) fn feeds_of(tape: &Tape, batch: &Batch) -> Result<Vec<Tensor>, TrainError> {
    let find = |input: &Value| {
        let feed = batch.feeds.iter().find(|(name, _)| *name == input.name);
        feed.map(|(_, tensor)| tensor.clone()).ok_or_else(|| {
            let names: Vec<&str> = batch.feeds.iter().map(|(name, _)| name.as_str()).collect();
            TrainError::Feed { input: input.name.clone(), found: names.join(", ") }
        })
    };
    tape.inputs().iter().map(find).collect()
}
