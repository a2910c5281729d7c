//! Why a graph does not train.

use attar_graph::GraphError;
use attar_ops::{OpError, ProgramError};

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum TrainError {
    #[error("{op_type} (node `{node}`) {source}")]
    Node { node: String, op_type: String, source: Box<OpError> },

    #[error("the model has no initializer `{name}`")]
    NoInitializer { name: String },

    #[error("the model has no output `{name}`; it has {outputs}")]
    NoOutput { name: String, outputs: String },

    #[error("no weight has part in {outputs}")]
    NothingToTrain { outputs: String },

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
    /// The user's next step.
    pub fn hint(&self) -> String {
        match self {
            Self::Node { source, .. } => source.hint(),
            Self::NoInitializer { .. } | Self::NoOutput { .. } | Self::Graph(_) => {
                "check the model: `attar inspect MODEL`".into()
            }
            Self::NothingToTrain { .. } => "freeze fewer weights".into(),
        }
    }
}
