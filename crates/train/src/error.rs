//! Why a graph does not train.

use std::path::PathBuf;

use attar_graph::GraphError;
use attar_ops::{OpError, ProgramError};

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum TrainError {
    #[error("{op_type} (node `{node}`) {source}")]
    Node { node: String, op_type: String, source: Box<OpError> },

    /// A node through which no gradient flows back to `weights`, of which it reads `tensor`.
    #[error(
        "{op_type} (node `{node}`) has no gradient; through its input `{tensor}` it lies between \
         {weights} and the loss"
    )]
    NoGradient { node: String, op_type: String, tensor: String, weights: String },

    #[error("the output `{output}` is no tensor, so no loss can be made of it")]
    NoTensor { output: String },

    #[error("the model has no initializer `{name}`")]
    NoInitializer { name: String },

    #[error("the model has no output `{name}`; it has {outputs}")]
    NoOutput { name: String, outputs: String },

    #[error("no weight has part in {outputs}")]
    NothingToTrain { outputs: String },

    /// A node with bodies stands between the weights and the outputs.
    #[error(
        "{op_type} (node `{node}`) leads to {outputs}, and no gradient flows through its bodies"
    )]
    ThroughBodies { node: String, op_type: String, outputs: String },

    #[error("no {what} is called `{name}`; there are {known}")]
    Unknown { what: &'static str, name: String, known: String },

    #[error("settings of `{of}`: {message}; they are {known}")]
    Settings { of: String, message: String, known: String },

    #[error("the pattern `{pattern}` matches none of the model's weights")]
    Unmatched { pattern: String },

    #[error("the loss {loss} is given {found}, expected {expected}")]
    Targets { loss: &'static str, found: String, expected: String },

    #[error("a batch feeds {found}; the model's input `{input}` is not among them")]
    Feed { input: String, found: String },

    #[error("the data set holds no example")]
    NoData,

    /// Data or a metric from above this crate.
    #[error("{message}")]
    Data { message: String, hint: String },

    #[error("step {step}: the loss is {loss}; {culprit}")]
    NotFinite { step: u64, loss: f64, culprit: String },

    #[error("step {step}: the loss has risen to {loss:.4}, from {first:.4} at first")]
    Diverged { step: u64, loss: f64, first: f64 },

    #[error("{path}: {message}")]
    File { path: PathBuf, message: String },

    #[error("{path}: {message}")]
    Checkpoint { path: PathBuf, message: String },

    #[error("{path} was begun with another model, data or options")]
    OtherRun { path: PathBuf },

    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl From<ProgramError> for TrainError {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::Node { node, op_type, source } => Self::Node { node, op_type, source },
            ProgramError::Graph(error) => Self::Graph(error),
        }
    }
}

impl TrainError {
    /// Data that cannot be read, or a metric that cannot be measured.
    pub fn data(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Data { message: message.into(), hint: hint.into() }
    }

    /// The user's next step.
    pub fn hint(&self) -> String {
        match self {
            Self::Node { source, .. } => source.hint(),
            Self::NoGradient { weights, .. } => {
                format!("freeze {weights}, or make the loss of other outputs")
            }
            Self::NoTensor { .. } => "name other outputs for the loss".into(),
            Self::NoInitializer { .. }
            | Self::NoOutput { .. }
            | Self::Feed { .. }
            | Self::Graph(_) => "check the model: `attar inspect MODEL`".into(),
            Self::NothingToTrain { .. } => "freeze fewer weights".into(),
            Self::ThroughBodies { .. } => {
                "export the model without control flow, or train outputs before it".into()
            }
            Self::Unknown { .. } | Self::Settings { .. } => "see `attar train --help`".into(),
            Self::Unmatched { .. } => {
                "names stand in `attar inspect MODEL`; `*` is any text".into()
            }
            Self::Targets { .. } => {
                "choose a loss that fits the data and the model's output".into()
            }
            Self::NoData => "give another data set".into(),
            Self::Data { hint, .. } => hint.clone(),
            Self::NotFinite { .. } | Self::Diverged { .. } => {
                "go on from the last checkpoint with a lower learning rate, or clip gradients"
                    .into()
            }
            Self::File { .. } => "check the folder and its space".into(),
            Self::OtherRun { .. } => {
                "resume with what the run was begun with, or choose another folder".into()
            }
            Self::Checkpoint { .. } => "begin the run anew in another folder".into(),
        }
    }
}
