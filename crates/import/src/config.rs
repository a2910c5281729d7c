//! config.json of a Hugging Face folder, before and after the architecture is known.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::ImportError;

const JSON: &str = "the JSON that Hugging Face writes";

/// config.json as it was read.
pub(crate) struct ConfigFile {
    pub(crate) file: PathBuf,
    values: Map<String, Value>,
}

impl ConfigFile {
    pub(crate) fn read(folder: &Path) -> Result<Self, ImportError> {
        let file = folder.join("config.json");
        Ok(Self { values: read_json(&file)?, file })
    }

    /// The values of a network that no file describes.
    pub(crate) fn of_values(values: Map<String, Value>) -> Self {
        Self { file: PathBuf::from("config.json"), values }
    }

    pub(crate) fn model_type(&self) -> Result<&str, ImportError> {
        let found = self.values.get("model_type").and_then(Value::as_str);
        found.ok_or_else(|| self.malformed("it has no text `model_type`".into()))
    }

    /// The classes that wrote the folder; none where it does not say.
    pub(crate) fn classes(&self) -> impl Iterator<Item = &str> {
        let classes = self.values.get("architectures").and_then(Value::as_array);
        classes.into_iter().flatten().filter_map(Value::as_str)
    }

    /// The values as a `T`, those of an architecture with own names under the usual ones.
    pub(crate) fn parse<T: DeserializeOwned>(
        &self,
        names: &[(&str, &str)],
    ) -> Result<T, ImportError> {
        let mut values = self.values.clone();
        for (own, usual) in names {
            if let Some(value) = self.values.get(*own) {
                values.insert((*usual).into(), value.clone());
            }
        }
        without_nulls(values).map_err(|mut reason| {
            for (own, usual) in names {
                reason = reason.replace(&format!("`{usual}`"), &format!("`{own}`"));
            }
            self.malformed(reason)
        })
    }

    fn malformed(&self, reason: String) -> ImportError {
        malformed(&self.file, reason)
    }

    pub(crate) fn unsupported(&self, what: &str, found: &str, supported: &str) -> ImportError {
        unsupported(&self.file, what, found, supported)
    }
}

/// What `file` asks for and nothing here does.
pub(crate) fn unsupported(file: &Path, what: &str, found: &str, supported: &str) -> ImportError {
    ImportError::Unsupported {
        file: file.into(),
        what: what.into(),
        found: format!("`{found}`"),
        supported: supported.into(),
    }
}

/// The settings in `file`, of which a null is none.
pub(crate) fn read_settings<T: DeserializeOwned>(file: &Path) -> Result<T, ImportError> {
    without_nulls(read_json(file)?).map_err(|reason| malformed(file, reason))
}

/// Python writes null for a value that is left to its default.
fn without_nulls<T: DeserializeOwned>(mut values: Map<String, Value>) -> Result<T, String> {
    values.retain(|_, value| !value.is_null());
    serde_json::from_value(values.into()).map_err(|error| error.to_string())
}

fn malformed(file: &Path, reason: String) -> ImportError {
    ImportError::Malformed { file: file.into(), expected: JSON, reason }
}

/// The JSON in `file`.
pub(crate) fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T, ImportError> {
    let bytes =
        std::fs::read(file).map_err(|source| ImportError::Io { path: file.into(), source })?;
    serde_json::from_slice(&bytes).map_err(|error| malformed(file, error.to_string()))
}
