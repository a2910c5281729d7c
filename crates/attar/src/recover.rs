//! A step of a recipe that trains: what a model lost by pruning or quantizing is won back, from
//! the original's outputs or from labels.

use attar_compress::OptionEntry;
use attar_graph::Model;
use attar_train::PruneOptions;
use serde::Deserialize;

use crate::Error;
use crate::stages::{StageEntry, joined};
use crate::training_step::{TRAINING_OPTIONS, TrainingRecord, TrainingRun, TrainingSettings};

pub(crate) const ENTRY: StageEntry = StageEntry {
    name: "recover",
    summary: "train what earlier steps left: from the original's outputs, or from labels; weights \
              that are zero stay zero",
    options: &joined::<{ TRAINING_OPTIONS.len() + 1 }>(&TRAINING_OPTIONS, OPTIONS),
};

const OPTIONS: &[OptionEntry] = &[OptionEntry {
    key: "prune",
    default: "no pruning",
    help: "gradual pruning on the way, a table: sparsity, importance, scope, start, end, every, \
           regrow, as the flags of `attar train`",
}];

/// The settings of a step that recovers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Recover {
    #[serde(flatten)]
    training: TrainingSettings,
    prune: Option<PruneOptions>,
}

impl Recover {
    /// What types do not say of the settings.
    ///
    /// # Errors
    /// As [`TrainingSettings::check`], or no epoch.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.training.epochs == Some(0) {
            let message = "`epochs` is 0, which trains nothing".into();
            return Err(Error::Recipe { place: format!("step `{}`", ENTRY.name), message });
        }
        self.training.check(ENTRY.name)
    }

    /// Trains all but the weights that `frozen` names; `None` if it was stopped before its end.
    ///
    /// # Errors
    /// As [`TrainingSettings::run`].
    pub(crate) fn run(
        &self,
        run: &TrainingRun,
        frozen: &[String],
    ) -> Result<Option<(Model, TrainingRecord)>, Error> {
        self.training.run(run, |options| {
            options.weights.freeze = frozen.to_vec();
            options.prune.clone_from(&self.prune);
        })
    }
}
