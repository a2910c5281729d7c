//! What stands around the encoder in a folder: modules, pooling, tokenizer, lengths.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::pooling::Pooling;
use crate::ImportError;
use crate::config::read_json;

pub(crate) struct Folder {
    /// Where config.json and the weights are.
    pub(crate) transformer: PathBuf,
    pub(crate) tokenizer: PathBuf,
    /// `None` where modules.json names none, or is not there.
    pub(crate) pooling: Option<Pooling>,
}

/// One step of modules.json.
#[derive(Deserialize)]
struct Module {
    path: PathBuf,
    #[serde(rename = "type")]
    class: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
    do_lower_case: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    /// A float too large for any integer where there is no limit.
    model_max_length: Option<f64>,
}

impl Folder {
    pub(crate) fn read(folder: &Path, with_pooling: bool) -> Result<Self, ImportError> {
        let file = folder.join("modules.json");
        let mut found =
            Self { transformer: folder.into(), tokenizer: PathBuf::new(), pooling: None };
        if file.is_file() {
            found.read_modules(folder, &file, with_pooling)?;
        }
        found.tokenizer = [&found.transformer, folder]
            .map(|place| place.join("tokenizer.json"))
            .into_iter()
            .find(|file| file.is_file())
            .ok_or_else(|| ImportError::Io {
                path: folder.join("tokenizer.json"),
                source: std::io::ErrorKind::NotFound.into(),
            })?;
        Ok(found)
    }

    /// The chain must be an encoder, a pooling and perhaps a normalization.
    fn read_modules(
        &mut self,
        folder: &Path,
        file: &Path,
        with_pooling: bool,
    ) -> Result<(), ImportError> {
        let modules: Vec<Module> = read_json(file)?;
        // Releases moved the classes between packages; their own names stayed.
        let names: Vec<&str> =
            modules.iter().map(|module| module.class.rsplit('.').next().unwrap_or("")).collect();
        let unsupported = |found: &str| ImportError::Unsupported {
            file: file.into(),
            what: "the chain of modules".into(),
            found: found.into(),
            supported: "Transformer alone, or Transformer, Pooling, and Normalize or nothing"
                .into(),
        };
        let is_normalized = match names.as_slice() {
            ["Transformer", ..] if !with_pooling => false,
            ["Transformer"] | ["Transformer", "Pooling"] => false,
            ["Transformer", "Pooling", "Normalize"] => true,
            _ => return Err(unsupported(&names.join(", "))),
        };
        for module in &modules {
            let is_inside =
                module.path.components().all(|part| matches!(part, Component::Normal(_)));
            if !is_inside {
                return Err(unsupported(&format!("at `{}`", module.path.display())));
            }
        }
        self.transformer = folder.join(&modules[0].path);
        if let Some(pooling) = modules.get(1).filter(|_| with_pooling) {
            let config = folder.join(&pooling.path).join("config.json");
            self.pooling = Some(Pooling::read(&config, is_normalized)?);
        }
        Ok(())
    }

    fn sentence_config(&self) -> Result<SentenceConfig, ImportError> {
        read_if_there(&self.transformer.join("sentence_bert_config.json"))
    }

    /// The least of what the encoder has positions for and what its makers cut texts to.
    pub(crate) fn length_max(&self, position_count: usize) -> Result<usize, ImportError> {
        let sentence = self.sentence_config()?.max_seq_length;
        let tokenizer: TokenizerConfig =
            read_if_there(&self.transformer.join("tokenizer_config.json"))?;
        // Where both are given, sentence-transformers sets the tokenizer's limit to its own.
        let asked = sentence.or(tokenizer.model_max_length.map(|length| length as usize));
        Ok(asked.unwrap_or(position_count).min(position_count))
    }

    pub(crate) fn lowercase(&self) -> Result<bool, ImportError> {
        Ok(self.sentence_config()?.do_lower_case)
    }
}

fn read_if_there<T: Default + serde::de::DeserializeOwned>(file: &Path) -> Result<T, ImportError> {
    if file.is_file() { read_json(file) } else { Ok(T::default()) }
}
