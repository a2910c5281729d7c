//! Why data cannot be read or a model cannot be evaluated on it.

use std::path::PathBuf;

use attar_runtime::RuntimeError;

#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },

    #[error("{}:{line}: {message}", path.display())]
    Row { path: PathBuf, line: usize, message: String },

    /// A label that a model has no score for.
    #[error("{}:{line}: {message}", path.display())]
    Class { path: PathBuf, line: usize, message: String },

    #[error("{}: {message}", path.display())]
    Format { path: PathBuf, message: String },

    #[error("{} is not a data set that attar recognizes: {message}", path.display())]
    UnknownKind { path: PathBuf, message: String },

    #[error("the data is {found}, which cannot be used for {wanted}")]
    WrongKind { found: &'static str, wanted: &'static str },

    #[error("the model's input `{input}` is not one that {data} can fill")]
    Input { input: String, data: &'static str },

    #[error("the model has no single output to take as {wanted}; its outputs are {outputs}")]
    Output { wanted: &'static str, outputs: String },

    #[error("output `{output}` is {found}, expected {expected}")]
    OutputShape { output: String, found: String, expected: String },

    #[error("the output gives {found} numbers per example, the data has {expected} {what}")]
    OutputWidth { found: usize, expected: usize, what: &'static str },

    #[error("output `{output}` is not finite for example {example} of its batch")]
    NotFinite { output: String, example: usize },

    #[error("the model gives one score for two texts, which cannot be used for {wanted}")]
    OneScore { wanted: &'static str },

    #[error("no attar.toml beside the model says how to turn {data} into its inputs")]
    NoPreprocessing { data: &'static str },

    #[error("tokenizer {}: {message}", path.display())]
    Tokenizer { path: PathBuf, message: String },

    #[error("attar.toml names `{name}` as a state, and the model has no such {what}")]
    State { name: String, what: &'static str },

    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl EvaluateError {
    pub(crate) fn file(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::File { path: path.into(), source }
    }

    /// The user's next step.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Row { .. } => "mend the row, or leave bad rows out: `--skip-bad`".into(),
            Self::Class { .. } => {
                "make a model of more classes, or see whether its attar.toml has the right `labels`"
                    .into()
            }
            Self::UnknownKind { .. } => {
                "name its kind with `--data-kind`: retrieval, pairs, labelled, text, images or tensors"
                    .into()
            }
            Self::Output { .. } | Self::OutputShape { .. } => {
                "name it in attar.toml: `output = \"NAME\"`; an encoder needs pooling in the graph \
                 (`attar import` puts it there)"
                    .into()
            }
            Self::OneScore { .. } => {
                "a cross-encoder is measured on sentence pairs; search needs an encoder".into()
            }
            Self::NoPreprocessing { .. } => {
                "`attar import` writes one; else write it as the README shows".into()
            }
            Self::State { .. } => {
                "see its inputs and outputs: `attar inspect MODEL`; states are `INPUT = \"OUTPUT\"` \
                 under [states]"
                    .into()
            }
            Self::Input { .. } => "see the model's inputs: `attar inspect MODEL`".into(),
            Self::NotFinite { .. } => {
                "the model is broken, or an input is: try the original".into()
            }
            Self::Runtime(error) => return error.hint(),
            _ => return None,
        })
    }
}
