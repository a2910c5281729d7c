//! What can go wrong, with the place and the next step.

use std::error::Error as _;
use std::path::PathBuf;

use attar_compress::PassError;
use attar_evaluate::EvaluateError;
use attar_import::ImportError;
use attar_onnx::OnnxError;
use attar_ops::opset::OpsetError;
use attar_runtime::RuntimeError;
use attar_train::TrainError;

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", path.display())]
    File { path: PathBuf, source: std::io::Error },

    #[error("{}", path.display())]
    Model { path: PathBuf, source: OnnxError },

    #[error("{} cannot be converted", path.display())]
    Convert { path: PathBuf, source: OpsetError },

    #[error("{place}: {message}")]
    Recipe { place: String, message: String },

    #[error("{}`{pass}` failed", step.map_or(String::new(), |step| format!("step {step} ")))]
    Step { step: Option<usize>, pass: String, source: PassError },

    #[error("{subject}")]
    Runtime { subject: String, source: RuntimeError },

    #[error(transparent)]
    Evaluate(#[from] EvaluateError),

    #[error(transparent)]
    Import(#[from] ImportError),

    #[error(transparent)]
    Train(#[from] TrainError),

    #[error("stopped")]
    Stopped,

    #[error("{message}")]
    Usage { message: String, hint: String },
}

impl Error {
    pub(crate) fn file(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::File { path: path.into(), source }
    }

    /// The message with its causes, one after the other.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            // Some errors already say their cause in their own words.
            if !text.ends_with(&error.to_string()) {
                text.push_str(": ");
                text.push_str(&error.to_string());
            }
            cause = error.source();
        }
        text
    }

    /// The user's next step.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Model { source, .. } => source.hint(),
            Self::Convert { source, .. } => Some(source.hint()),
            Self::Step { source, .. } => source.hint(),
            Self::Runtime { source, .. } => source.hint(),
            Self::Evaluate(error) => error.hint(),
            Self::Import(error) => Some(error.hint().clone()),
            Self::Train(error) => Some(error.hint()).filter(|hint| !hint.is_empty()),
            Self::Usage { hint, .. } => Some(hint.clone()),
            Self::Recipe { .. } => Some("see `attar passes` and `attar compress --help`".into()),
            Self::Stopped => Some("go on with the same command and `--resume`".into()),
            Self::File { .. } => None,
        }
    }
}
