//! `attar.toml`: how texts and images become a model's inputs. It stands beside the model, so that
//! the two never part.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::EvaluateError;

/// The content of `attar.toml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// The output that is the vector or the scores, where the model has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The names of the classes, in the order of the scores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<TextInput>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageInput>,
    /// Inputs that are outputs of the call before, as in a recurrent network that hears a stream:
    /// names of inputs, and of the outputs that are their next values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub states: BTreeMap<String, String>,
    /// How a quantized model got its ranges: a record, which nothing reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<toml::Table>,
}

/// How a text becomes token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextInput {
    /// A `tokenizer.json`, relative to this file.
    pub tokenizer: PathBuf,
    /// Tokens kept of a text, special ones included.
    pub length_max: usize,
}

/// How an image becomes a tensor [batch, channels, size, size] of (value/255 − mean) / std.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageInput {
    /// Pixels of the short side after resizing (antialiased).
    pub resize: usize,
    /// Both sides become `resize`, whatever their ratio was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stretch: bool,
    #[serde(default, skip_serializing_if = "Resample::is_bilinear")]
    pub resample: Resample,
    /// Pixels of each side of the square cut from the centre.
    pub size: usize,
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
}

/// How pixels between those of an image are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resample {
    #[default]
    Bilinear,
    Bicubic,
}

impl Resample {
    // Serde hands a reference.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_bilinear(&self) -> bool {
        *self == Self::Bilinear
    }
}

const FILE_NAME: &str = "attar.toml";

impl Preprocessing {
    /// Reads the `attar.toml` beside a model; `None` where there is none.
    ///
    /// # Errors
    /// A file that cannot be read or has a wrong key, with its line.
    pub fn beside(model: &Path) -> Result<Option<Self>, EvaluateError> {
        let path = model.with_file_name(FILE_NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(EvaluateError::File { path, source }),
        };
        let parsed: Result<Self, toml::de::Error> = toml::from_str(&text);
        parsed.map(Some).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            EvaluateError::Format { path, message: format!("line {line}: {}", error.message()) }
        })
    }

    /// Writes `attar.toml` into a folder, by rename.
    ///
    /// # Errors
    /// Whatever writing reports.
    pub fn save(&self, folder: &Path) -> Result<(), EvaluateError> {
        let text = toml::to_string(self).expect("preprocessing is made of what TOML can hold");
        let (path, part) = (folder.join(FILE_NAME), folder.join("attar.toml.part"));
        let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &path));
        written.map_err(EvaluateError::file(&path))
    }
}
