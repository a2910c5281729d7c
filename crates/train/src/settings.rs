//! Settings of the entries of tables, read by name.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::TrainError;

/// One setting, as the reference shows it.
#[derive(Clone, Copy, Debug)]
pub struct SettingEntry {
    pub key: &'static str,
    /// The default as JSON; empty for none.
    pub default: &'static str,
    pub help: &'static str,
}

/// An entry of a table, chosen by name, with settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    pub name: String,
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

impl Choice {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), settings: Map::new() }
    }

    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.settings.insert(key.into(), value.into());
        self
    }

    /// The configuration that the settings stand for.
    ///
    /// # Errors
    /// [`TrainError::Settings`] for a setting that `entries` do not have, or of another type.
    pub(crate) fn read<T: DeserializeOwned>(
        &self,
        entries: &[SettingEntry],
    ) -> Result<T, TrainError> {
        serde_json::from_value(Value::Object(self.settings.clone())).map_err(|error| {
            let known: Vec<&str> = entries.iter().map(|entry| entry.key).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            TrainError::Settings { of: self.name.clone(), message: error.to_string(), known }
        })
    }
}
