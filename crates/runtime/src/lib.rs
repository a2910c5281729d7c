//! Running models: one trait, and the runtimes behind it.

mod builtin;
mod feeds;
mod ort;

use attar_graph::{GraphError, Model, Value};
use attar_ops::{OpError, ProgramError};
use attar_tensor::Tensor;

pub use attar_ops::StepTime;

pub use builtin::Builtin;
pub use ort::Ort;

/// How to run a model.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Threads to compute with, the caller's included.
    pub threads: std::num::NonZeroUsize,
    /// Values that [`Session::observe`] shows.
    pub observed: Vec<String>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { threads: std::num::NonZeroUsize::MIN, observed: Vec::new() }
    }
}

/// Something that runs models.
pub trait Runtime {
    /// The name that reports and `--runtime` use.
    fn name(&self) -> &'static str;

    /// Version of what computes: attar's own, or the library's.
    fn version(&self) -> String;

    /// Prepares a model: checks it, plans buffers, packs weights.
    ///
    /// # Errors
    /// When the model has what this runtime does not support, naming the node.
    fn load(&self, model: &Model, options: &RunOptions) -> Result<Box<dyn Session>, RuntimeError>;
}

/// A model prepared to run.
pub trait Session: Send {
    /// What must be fed, in model order.
    fn inputs(&self) -> &[Value];

    /// What comes out, in model order.
    fn outputs(&self) -> &[Value];

    /// Runs the model. Feeds are named and may come in any order; outputs come in model order.
    ///
    /// # Errors
    /// A missing or unknown feed, a type or shape the model does not take, or a failing node.
    fn run(&mut self, feeds: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, RuntimeError>;

    /// Runs the model and shows the values named in [`RunOptions::observed`] as they are computed,
    /// while only the values still needed are held.
    ///
    /// # Errors
    /// As [`run`](Self::run); [`RuntimeError::Unsupported`] where a runtime cannot look inside.
    fn observe(
        &mut self,
        feeds: &[(&str, &Tensor)],
        visit: &mut (dyn FnMut(&str, &Tensor) + Send),
    ) -> Result<Vec<Tensor>, RuntimeError> {
        let _ = (feeds, visit);
        Err(RuntimeError::Unsupported { what: "showing intermediate values".into() })
    }

    /// Runs the model and tells what each of its steps took, in order. Steps of a fused graph
    /// stand for several nodes.
    ///
    /// # Errors
    /// As [`run`](Self::run); [`RuntimeError::Unsupported`] where a runtime does not tell.
    fn profile(&mut self, feeds: &[(&str, &Tensor)]) -> Result<Vec<StepTime>, RuntimeError> {
        let _ = feeds;
        Err(RuntimeError::Unsupported { what: "timing single nodes".into() })
    }
}

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("input `{name}` is not fed")]
    MissingFeed { name: String },

    #[error("the model has no input `{name}`; it has {inputs}")]
    UnknownFeed { name: String, inputs: String },

    #[error("input `{name}` is fed {found}, the model takes {expected}")]
    FeedType { name: String, found: String, expected: String },

    #[error("{op_type} (node `{node}`) {source}")]
    Node { node: String, op_type: String, source: Box<OpError> },

    #[error(transparent)]
    Graph(#[from] GraphError),

    #[error("this runtime does not support {what}")]
    Unsupported { what: String },

    #[error("ONNX Runtime: {message}")]
    Ort { message: String },

    #[error("no ONNX Runtime library found: {tried}")]
    OrtNotFound { tried: String },
}

impl From<ProgramError> for RuntimeError {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::Node { node, op_type, source } => Self::Node { node, op_type, source },
            ProgramError::Graph(error) => Self::Graph(error),
        }
    }
}

impl RuntimeError {
    /// The user's next step.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::OrtNotFound { .. } => {
                "name the library with `--ort PATH` or ORT_DYLIB_PATH, `pip install onnxruntime`, \
                 or use `--runtime builtin`"
                    .into()
            }
            Self::MissingFeed { .. } | Self::UnknownFeed { .. } | Self::FeedType { .. } => {
                "see the model's inputs: `attar inspect MODEL`".into()
            }
            Self::Node { source, .. } => source.hint(),
            Self::Graph(_) | Self::Unsupported { .. } | Self::Ort { .. } => return None,
        })
    }
}
