//! config.json of a Hugging Face folder.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::ImportError;

/// What decides the graph of an encoder.
#[derive(Deserialize)]
pub(crate) struct Config {
    #[serde(skip)]
    pub(crate) file: PathBuf,
    pub(crate) model_type: String,
    #[serde(default)]
    pub(crate) architectures: Vec<String>,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) hidden_act: String,
    pub(crate) layer_norm_eps: f32,
    pub(crate) max_position_embeddings: usize,
    pub(crate) vocab_size: usize,
    #[serde(default)]
    pub(crate) type_vocab_size: usize,
    pub(crate) pad_token_id: Option<i64>,
    pub(crate) position_embedding_type: Option<String>,
    pub(crate) relative_attention_num_buckets: Option<usize>,
    #[serde(default)]
    pub(crate) is_decoder: bool,
}

impl Config {
    pub(crate) fn read(folder: &Path) -> Result<Self, ImportError> {
        let file = folder.join("config.json");
        let mut config: Self = read_json(&file)?;
        config.file = file;
        config.check()?;
        Ok(config)
    }

    /// Refuses what no encoder here does, before any architecture looks.
    fn check(&self) -> Result<(), ImportError> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || hidden == 0 || hidden % heads != 0 {
            let found = format!("{hidden} in {heads} heads");
            return Err(self.unsupported("hidden_size", &found, "a multiple of the heads"));
        }
        if self.is_decoder {
            return Err(self.unsupported("is_decoder", "true", "false: encoders"));
        }
        match self.position_embedding_type.as_deref() {
            None | Some("absolute") => Ok(()),
            Some(found) => Err(self.unsupported("position_embedding_type", found, "absolute")),
        }
    }

    pub(crate) fn unsupported(&self, what: &str, found: &str, supported: &str) -> ImportError {
        ImportError::Unsupported {
            file: self.file.clone(),
            what: what.into(),
            found: format!("`{found}`"),
            supported: supported.into(),
        }
    }

    pub(crate) fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

/// The JSON in `file`.
pub(crate) fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T, ImportError> {
    let bytes =
        std::fs::read(file).map_err(|source| ImportError::Io { path: file.into(), source })?;
    serde_json::from_slice(&bytes).map_err(|error| ImportError::Malformed {
        file: file.into(),
        expected: "the JSON that Hugging Face writes",
        reason: error.to_string(),
    })
}
