//! Why an import stops.

use std::io;
use std::path::PathBuf;

use attar_tensor::DType;

/// What is wrong with the files of another framework.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },

    #[error("`{}` is not {expected}: {reason}", file.display())]
    Malformed { file: PathBuf, expected: &'static str, reason: String },

    #[error("`{}` holds no model.safetensors, other *.safetensors or pytorch_model.bin, nor an index of them", folder.display())]
    NoWeights { folder: PathBuf },

    #[error("`{}` names no pooling in a modules.json", folder.display())]
    NoPooling { folder: PathBuf },

    #[error("`{}` has no tensor `{tensor}`", file.display())]
    MissingTensor { file: PathBuf, tensor: String },

    #[error("`{}` has `{tensor}`, which is not part of {architecture} ({count} such in all)", file.display())]
    UnexpectedTensor { file: PathBuf, tensor: String, count: usize, architecture: &'static str },

    #[error("`{tensor}` in `{}` has shape {found:?}, expected {expected}", file.display())]
    Shape { file: PathBuf, tensor: String, found: Vec<usize>, expected: String },

    #[error("`{tensor}` in `{}` is {found}, expected f32, f16, bf16 or f64", file.display())]
    NotFloat { file: PathBuf, tensor: String, found: DType },

    #[error("`{tensor}` in `{}` is in `{}` too", file.display(), other.display())]
    Duplicate { file: PathBuf, other: PathBuf, tensor: String },

    #[error("`{}` calls `{global}`, which is not part of saving tensors", file.display())]
    ForbiddenGlobal { file: PathBuf, global: String },

    #[error("`{}`: {what} is {found}, supported: {supported}", file.display())]
    Unsupported { file: PathBuf, what: String, found: String, supported: String },

    #[error("no architecture is called `{found}`; there are {known}")]
    UnknownArchitecture { found: String, known: String },

    #[error("no new model is called `{found}`; there are {known}")]
    NoArchitecture { found: String, known: String },

    #[error("{architecture} has no option `{found}`; it has {known}")]
    NoOption { architecture: &'static str, found: String, known: String },

    #[error("`{option}` of {architecture} is `{found}`, expected {expected}")]
    Option { architecture: &'static str, option: &'static str, found: String, expected: String },

    #[error("`{tensor}` of shape {shape:?} would give the model more than {max} weights")]
    TooLarge { tensor: String, shape: Vec<usize>, max: usize },

    #[error("opset {found} cannot be written, {} to {} can", .range.start(), .range.end())]
    Opset { found: i64, range: std::ops::RangeInclusive<i64> },
}

impl ImportError {
    /// The user's next step, printed after `hint:`.
    pub fn hint(&self) -> String {
        match self {
            Self::Io { .. } => "check that the path exists and may be read".into(),
            Self::Malformed { expected, .. } => {
                format!("download it again; if it still is not {expected}, it is of another kind")
            }
            Self::NoWeights { .. } => {
                "name the folder that holds config.json and the weights; from TensorFlow or Flax, \
                 save with `save_pretrained(…)` in PyTorch first"
                    .into()
            }
            Self::NoPooling { .. } => {
                "import the token vectors with `--no-pooling`, or add the modules.json that \
                 sentence-transformers writes"
                    .into()
            }
            Self::MissingTensor { .. } | Self::Shape { .. } => {
                "config.json or the architecture named belongs to another model than these weights"
                    .into()
            }
            Self::UnexpectedTensor { .. } => {
                "leaving weights out would give another model: merge adapters first, and check \
                 that config.json belongs to these weights"
                    .into()
            }
            Self::NotFloat { .. } => "import the weights before they were quantized".into(),
            Self::Duplicate { .. } => "keep one of the two files in the folder".into(),
            Self::ForbiddenGlobal { .. } => {
                "do not load this file with anything that runs it; if you trust its source, save \
                 its state dict alone: `torch.save(model.state_dict(), …)`, or as .safetensors"
                    .into()
            }
            Self::Unsupported { .. } => {
                "export the model to ONNX with its own framework; attar reads that too".into()
            }
            Self::UnknownArchitecture { .. } => "see `attar import --help`".into(),
            Self::NoArchitecture { .. } | Self::NoOption { .. } => "see `attar new --help`".into(),
            Self::Option { architecture, .. } => format!("see `attar new {architecture} --help`"),
            Self::TooLarge { .. } => "choose smaller sizes".into(),
            Self::Opset { range, .. } => format!("leave it out: {} is the default", range.start()),
        }
    }
}
