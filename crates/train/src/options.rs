//! How to train: everything that decides the result.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::{Choice, PruneOptions, Schedule, Span};

/// How to train. The same options, model and data give the same weights, bit for bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainerOptions {
    pub loss: Choice,
    pub optimizer: Choice,
    pub schedule: Schedule,
    pub weights: WeightOptions,
    pub batches: BatchOptions,
    pub length: LengthOptions,
    /// Outputs that the loss reads, in its order; empty for the first of the model.
    pub outputs: Vec<String>,
    /// What the distance to a teacher's features counts for; `None` where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_weight: Option<f64>,
    /// Norm of all gradients together above which they are scaled down to it.
    pub clip_norm: Option<f64>,
    /// Which weights become zero on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune: Option<PruneOptions>,
    #[serde(skip)]
    pub machine: MachineOptions,
}

/// Which weights change, and how they are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WeightOptions {
    /// Patterns of initializers to train; empty for those that are weights by their place.
    pub train: Vec<String>,
    /// Patterns of initializers to leave as they are.
    pub freeze: Vec<String>,
    /// Whether weights that are zero stay zero.
    pub hold_zeros: bool,
    /// Whether vectors, such as biases and scales of normalization, decay too.
    pub decay_vectors: bool,
    /// How much the moving average of the weights keeps in a step; `None` keeps no average.
    pub average: Option<f64>,
    /// What learns beside the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scales: Option<ScaleOptions>,
}

/// Initializers that say how operators work, and learn as weights do: scales of a quantization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleOptions {
    pub names: Vec<String>,
    /// How long they learn; afterwards weights learn with the scales that there are.
    pub until: Span,
}

impl Default for WeightOptions {
    fn default() -> Self {
        let (train, freeze) = (Vec::new(), Vec::new());
        Self { train, freeze, hold_zeros: true, decay_vectors: false, average: None, scales: None }
    }
}

/// How examples make batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchOptions {
    pub size: NonZeroUsize,
    /// Batches whose gradients make one step.
    pub accumulate: NonZeroUsize,
    /// Whether examples of like length go together, where the data has lengths.
    pub bucket: bool,
    /// Whether the last batch of an epoch is left out when it is not full.
    pub drop_last: bool,
    pub seed: u64,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            size: NonZeroUsize::new(32).expect("32 is not 0"),
            accumulate: NonZeroUsize::MIN,
            bucket: true,
            drop_last: false,
            seed: 0,
        }
    }
}

/// How long to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LengthOptions {
    pub epochs: usize,
    /// Ends the run earlier.
    pub steps_max: Option<u64>,
    /// Steps from one validation to the next; `None` validates at the end of every epoch.
    pub validate_every: Option<u64>,
    /// Validations without a better metric after which the run ends.
    pub patience: Option<usize>,
    /// How often the loss may rise above its first value, smoothed, before the run is given up.
    pub divergence: Option<f64>,
}

impl Default for LengthOptions {
    fn default() -> Self {
        Self {
            epochs: 1,
            steps_max: None,
            validate_every: None,
            patience: None,
            divergence: Some(10.0),
        }
    }
}

/// What decides speed and memory, and not the result.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineOptions {
    pub threads: NonZeroUsize,
    /// See [`TapeOptions`](crate::TapeOptions).
    pub recompute: bool,
    pub unfused: bool,
}

impl Default for MachineOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { threads, recompute: false, unfused: false }
    }
}

impl TrainerOptions {
    pub fn new(loss: Choice, optimizer: Choice, schedule: Schedule) -> Self {
        Self {
            loss,
            optimizer,
            schedule,
            weights: WeightOptions::default(),
            batches: BatchOptions::default(),
            length: LengthOptions::default(),
            outputs: Vec::new(),
            feature_weight: None,
            clip_norm: None,
            prune: None,
            machine: MachineOptions::default(),
        }
    }
}
