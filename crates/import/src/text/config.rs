//! What of config.json decides the graph of a text encoder.

use serde::Deserialize;

use super::TextArchitecture;
use crate::ImportError;
use crate::config::ConfigFile;
use crate::transformer::LayerConfig;

#[derive(Deserialize)]
pub(crate) struct Config {
    #[serde(flatten)]
    pub(crate) layers: LayerConfig,
    pub(crate) max_position_embeddings: usize,
    pub(crate) vocab_size: usize,
    #[serde(default)]
    pub(crate) type_vocab_size: usize,
    /// Where it differs from the size of the layers.
    embedding_size: Option<usize>,
    pub(crate) pad_token_id: Option<i64>,
    position_embedding_type: Option<String>,
    pub(crate) relative_attention_num_buckets: Option<usize>,
}

impl Config {
    pub(crate) fn new(
        file: &ConfigFile,
        architecture: &TextArchitecture,
    ) -> Result<Self, ImportError> {
        let mut config: Self = file.parse(architecture.config_names)?;
        config.layers.file.clone_from(&file.file);
        config.layers.check()?;
        config.pad_token_id.get_or_insert(architecture.pad_token_id);
        match config.position_embedding_type.as_deref() {
            None | Some("absolute") => Ok(config),
            Some(found) => Err(config.unsupported("position_embedding_type", found, "absolute")),
        }
    }

    pub(crate) fn unsupported(&self, what: &str, found: &str, supported: &str) -> ImportError {
        self.layers.unsupported(what, found, supported)
    }

    pub(crate) fn hidden_size(&self) -> usize {
        self.layers.hidden_size
    }

    pub(crate) fn embedding_size(&self) -> usize {
        self.embedding_size.unwrap_or(self.layers.hidden_size)
    }
}
