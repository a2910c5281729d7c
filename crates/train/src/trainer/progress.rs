//! How far a run has come: all of its state but tensors.

use serde::{Deserialize, Serialize};

/// Where a run stands between two steps. Everything random is drawn from (seed, place), so that no
/// generator has a state of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Steps done.
    pub(super) step: u64,
    pub(super) epoch: usize,
    /// Batches of the epoch that are done.
    pub(super) batch: usize,
    /// Of the epoch: Σ loss · examples.
    #[serde(with = "bits")]
    pub(super) loss_sum: f64,
    pub(super) example_count: u64,
    /// The highest of the first losses.
    #[serde(with = "bits")]
    pub(super) loss_at_first: f64,
    #[serde(with = "bits")]
    pub(super) loss_smoothed: f64,
    pub(super) best: Option<Best>,
    /// Validations since the best.
    pub(super) stale_count: usize,
    /// The last step that was followed by a validation.
    pub(super) validated_step: u64,
    /// Whether validations no longer got better.
    pub(super) is_early: bool,
}

/// The validation that was best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Best {
    #[serde(with = "bits")]
    pub(super) metric: f64,
    pub(super) step: u64,
}

/// Steps whose losses say what is usual.
const FIRST_STEPS: u64 = 10;
/// How much of the smoothed loss a step keeps.
const SMOOTHING: f64 = 0.9;

impl Progress {
    /// Takes note of a step's loss. Whether it stays below `factor` times what was usual at first.
    pub(super) fn note(&mut self, loss: f64, examples: usize, factor: Option<f64>) -> bool {
        self.loss_sum += loss * examples as f64;
        self.example_count += examples as u64;
        if self.step <= FIRST_STEPS {
            self.loss_at_first = self.loss_at_first.max(loss.abs());
            self.loss_smoothed = loss;
            return true;
        }
        self.loss_smoothed = SMOOTHING * self.loss_smoothed + (1.0 - SMOOTHING) * loss;
        // A loss that begins near zero, as a student's that is its teacher, may rise to what is usual.
        factor.is_none_or(|factor| self.loss_smoothed <= factor * self.loss_at_first.max(1.0))
    }

    /// Takes note of a metric. Whether it is the best.
    pub(super) fn measured(&mut self, metric: f64, higher_is_better: bool) -> bool {
        self.validated_step = self.step;
        let is_better = |best: Best| {
            if higher_is_better { metric > best.metric } else { metric < best.metric }
        };
        let is_best = !metric.is_nan() && self.best.is_none_or(is_better);
        if is_best {
            self.best = Some(Best { metric, step: self.step });
            self.stale_count = 0;
        } else {
            self.stale_count += 1;
        }
        is_best
    }

    pub(super) fn end_epoch(&mut self) {
        self.epoch += 1;
        self.batch = 0;
        self.loss_sum = 0.0;
        self.example_count = 0;
    }
}

/// f64 as its bits: decimal digits may come back as a neighbour.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
    pub(super) fn serialize<S: Serializer>(number: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(number.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_rises_far_above_its_first_values_is_told() {
        let mut progress = Progress::default();
        let mut note = |loss| {
            progress.step += 1;
            progress.note(loss, 1, Some(10.0))
        };
        assert!((0..10).all(|_| note(2.0)));
        assert!((0..100).all(|_| note(0.1)));
        assert!(note(30.0), "one bad step is no divergence");
        assert!((0..30).any(|_| !note(40.0)));
    }

    #[test]
    fn progress_is_kept_to_the_last_bit() {
        let best = Some(Best { metric: 0.1 + 0.2, step: 3 });
        let progress = Progress { loss_sum: 1.0 / 3.0, best, ..Progress::default() };
        let text = serde_json::to_string(&progress).unwrap();
        assert_eq!(serde_json::from_str::<Progress>(&text).unwrap(), progress);
    }
}
