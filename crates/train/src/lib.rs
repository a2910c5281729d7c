//! Training any ONNX graph: a reverse-mode tape over the operators of `attar-ops`, losses,
//! optimizers, and the loop that goes over the data. Knows no data set and no tokenizer.

mod batch;
mod error;
mod gradual;
mod loss;
mod monitor;
mod optimizer;
mod options;
mod order;
mod rng;
mod schedule;
mod selection;
mod settings;
mod tape;
mod trainer;
mod zeros;

pub use batch::{Batch, IGNORED_CLASS, Source, Targets};
pub use error::TrainError;
pub use gradual::{PRUNE_IMPORTANCES, PruneImportance, PruneOptions, PruneScope};
pub use loss::{LOSSES, Loss, LossEntry, LossRun, Measured, build_loss, with_features};
pub use monitor::{Control, EpochReport, Monitor, Silent, StepReport, Validate, ValidationReport};
pub use optimizer::{OPTIMIZERS, Optimizer, OptimizerEntry, Update, build_optimizer};
pub use options::{
    BatchOptions, LengthOptions, MachineOptions, ScaleOptions, TrainerOptions, WeightOptions,
};
pub use rng::Rng;
pub use schedule::{Decay, Schedule, Span};
pub use settings::{Choice, SettingEntry};
pub use tape::{NotFinite, Recording, StepContext, Tape, TapeOptions, When, widen_half};
pub use trainer::{Checkpoints, Outcome, StepOutcome, Trainer};
