//! Importance: a score per weight, of how much is lost where it is removed.

mod absolute;
mod activation;
mod gradients;
mod random;
mod relative;
mod taylor;
mod taylor_second;
#[cfg(test)]
mod tests;

pub(crate) use self::gradients::{Target as GradientTarget, each as each_gradient};
use attar_graph::Model;
use attar_tensor::Tensor;
use serde::Deserialize;

use crate::{Context, PassError};

/// What is scored, and with what.
pub(crate) struct Scoring<'a> {
    pub(crate) model: &'a Model,
    /// Constants of f32, finite.
    pub(crate) names: &'a [String],
    pub(crate) context: &'a Context<'a>,
    /// Of whatever is drawn.
    pub(crate) seed: u64,
}

impl<'a> Scoring<'a> {
    /// The tensor of `names[index]`.
    pub(crate) fn tensor(&self, index: usize) -> &'a Tensor {
        let tensor = self.model.graph.constant(&self.names[index]);
        tensor.expect("the names are those of constants")
    }
}

/// Scores of tensors, made one at a time: those of a large model need not all be in memory.
pub(crate) trait Scores {
    /// One for each weight of `names[index]`, in file order: finite, and not below 0. What is zero
    /// already has 0, so that it goes first. Those of the weights of a channel can be added.
    fn of(&self, index: usize) -> Vec<f32>;
}

/// An importance in the table.
#[derive(Clone, Copy)]
pub struct ImportanceEntry {
    pub name: &'static str,
    pub summary: &'static str,
    /// Whether it runs the model on calibration data.
    pub needs_data: bool,
    /// Whether scores of different tensors are in one unit: what the outputs move by.
    pub is_comparable: bool,
    scores: for<'a> fn(&'a Scoring<'a>) -> Result<Box<dyn Scores + 'a>, PassError>,
}

/// Every importance.
pub const IMPORTANCES: &[ImportanceEntry] = &[
    ImportanceEntry {
        name: "l1",
        summary: "|w|",
        needs_data: false,
        is_comparable: false,
        scores: absolute::l1,
    },
    ImportanceEntry {
        name: "l2",
        summary: "w²",
        needs_data: false,
        is_comparable: false,
        scores: absolute::l2,
    },
    ImportanceEntry {
        name: "relative",
        summary: "|w| over the sum of |w| of its tensor",
        needs_data: false,
        is_comparable: false,
        scores: relative::scores,
    },
    ImportanceEntry {
        name: "activation",
        summary: "|w| times the root mean square of the channel that it meets (Wanda)",
        needs_data: true,
        is_comparable: false,
        scores: activation::scores,
    },
    ImportanceEntry {
        name: "taylor",
        summary: "mean of |w·g|, g the gradient of the outputs, summed with random signs",
        needs_data: true,
        is_comparable: true,
        scores: taylor::scores,
    },
    ImportanceEntry {
        name: "taylor2",
        summary: "mean of (w·g)²: w² times the diagonal of the Gauss-Newton matrix",
        needs_data: true,
        is_comparable: true,
        scores: taylor_second::scores,
    },
    ImportanceEntry {
        name: "loss",
        summary: "mean of |w·g|, g the gradient of the cross-entropy with the data's labels",
        needs_data: true,
        is_comparable: true,
        scores: taylor::of_loss,
    },
    ImportanceEntry {
        name: "random",
        summary: "drawn evenly, as a control",
        needs_data: false,
        is_comparable: false,
        scores: random::scores,
    },
];

/// An importance chosen by its name.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Importance(&'static ImportanceEntry);

impl std::fmt::Debug for Importance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name)
    }
}

impl TryFrom<String> for Importance {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = IMPORTANCES.iter().find(|entry| entry.name == name);
        found.map(Self).ok_or_else(|| {
            let known: Vec<&str> = IMPORTANCES.iter().map(|entry| entry.name).collect();
            format!("no importance is called `{name}`; there are {}", known.join(", "))
        })
    }
}

impl Importance {
    /// The one called `name`, which is in the table.
    pub(crate) fn named(name: &str) -> Self {
        name.to_string().try_into().expect("the name is in the table")
    }

    pub(crate) fn needs_data(self) -> bool {
        self.0.needs_data
    }

    pub(crate) fn is_comparable(self) -> bool {
        self.0.is_comparable
    }

    /// Scores of all tensors of `scoring`, ready to be asked for.
    ///
    /// # Errors
    /// No data where it is needed, or a model on which what is asked cannot be computed.
    pub(crate) fn scores<'a>(
        self,
        scoring: &'a Scoring<'a>,
    ) -> Result<Box<dyn Scores + 'a>, PassError> {
        (self.0.scores)(scoring)
    }
}
