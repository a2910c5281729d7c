//! Why a model cannot be read or written, and what the user can do about it.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use attar_graph::GraphError;
use attar_tensor::{DType, TensorError};

/// Why a model cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },

    #[error("not an ONNX model: `{field}`: {problem}")]
    Decode { field: String, problem: String },

    #[error("messages are nested more than {NESTING_MAX} deep, in `{field}`")]
    TooDeep { field: String },

    #[error("the model has no graph")]
    NoGraph,

    #[error("{place} has no name")]
    Unnamed { place: String },

    #[error("{place} is there twice")]
    Duplicate { place: String },

    #[error("{place}: {source}")]
    Tensor { place: String, source: TensorError },

    #[error("{place}: shape {shape:?} has a negative size")]
    NegativeSize { place: String, shape: Vec<i64> },

    #[error("{place}: {value} is no value of {dtype}")]
    Range { place: String, dtype: DType, value: i128 },

    #[error("{place}: {what} is not supported")]
    Unsupported { place: String, what: String },

    #[error("`{tensor}` keeps its data in `{location}`: {problem}")]
    External { tensor: String, location: String, problem: String },

    #[error("the model takes {size_bytes} bytes in one message, protobuf allows {limit}")]
    TooLarge { size_bytes: usize, limit: usize },

    #[error(transparent)]
    Graph(#[from] GraphError),

    #[error("function `{function}`: {source}")]
    Function { function: String, source: GraphError },
}

/// Messages within messages that protobuf's readers allow; a subgraph takes three.
const NESTING_MAX: usize = 100;

impl From<prost::DecodeError> for OnnxError {
    /// Splits `prost`'s message, the only thing it tells: the innermost field comes first there.
    fn from(error: prost::DecodeError) -> Self {
        const NAMES_MAX: usize = 8;
        let text = error.to_string();
        let text = text.strip_prefix("failed to decode Protobuf message: ").unwrap_or(&text);
        let (mut names, mut problem) = (vec!["ModelProto"], text);
        let is_place = |part: &str| part.contains("Proto.") || part.starts_with("Segment.");
        while let Some((place, rest)) = problem.split_once(": ").filter(|split| is_place(split.0)) {
            let field = place.rsplit('.').next().unwrap_or(place);
            names.insert(1, field.strip_prefix("r#").unwrap_or(field));
            problem = rest;
        }
        let is_too_deep = problem.starts_with("recursion limit");
        if names.len() > NAMES_MAX {
            names.truncate(NAMES_MAX);
            names.push("…");
        }
        let (field, problem) = (names.join("."), problem.to_string());
        if is_too_deep { Self::TooDeep { field } } else { Self::Decode { field, problem } }
    }
}

impl OnnxError {
    /// The user's next step, printed after `hint:`.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io { .. } => "see that the path is right and its folder can be used".into(),
            Self::Decode { .. } | Self::NoGraph => {
                "see that the file is a whole .onnx file; a download may have been cut short, or \
                 have brought a Git LFS pointer"
                    .into()
            }
            Self::External { .. } => {
                "keep data files in the model's folder, and name the model by its path".into()
            }
            Self::TooLarge { .. } => "save it to a file, with the weights in a second one".into(),
            Self::Unsupported { .. } | Self::TooDeep { .. } => "export the model without it".into(),
            Self::Graph(_)
            | Self::Function { .. }
            | Self::Unnamed { .. }
            | Self::Duplicate { .. }
            | Self::Tensor { .. }
            | Self::NegativeSize { .. }
            | Self::Range { .. } => {
                "the file breaks the ONNX specification: export it again, or report it to its maker"
                    .into()
            }
        })
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn unsupported(place: impl Display, what: impl Into<String>) -> Self {
        Self::Unsupported { place: place.to_string(), what: what.into() }
    }
}
