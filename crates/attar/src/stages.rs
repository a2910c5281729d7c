//! Steps of a recipe that are no passes: they need data beside the graph, and change what stands
//! beside it, or take long.

use attar_compress::OptionEntry;

use crate::Error;
use crate::recover::{self, Recover};
use crate::vocabulary::{self, Vocabulary};

/// A step that is no pass.
pub struct StageEntry {
    pub name: &'static str,
    pub summary: &'static str,
    pub options: &'static [OptionEntry],
}

/// Steps of a recipe that are no passes.
pub const STAGES: &[StageEntry] = &[vocabulary::ENTRY, recover::ENTRY];

/// A stage with its settings.
pub(crate) enum Stage {
    Vocabulary(Vocabulary),
    Recover(Box<Recover>),
}

impl Stage {
    /// The stage of that name, if there is one.
    ///
    /// # Errors
    /// Settings that it does not take.
    pub(crate) fn of(name: &str, settings: &toml::Table) -> Result<Option<Self>, Error> {
        Ok(if name == vocabulary::ENTRY.name {
            Some(Self::Vocabulary(read(&vocabulary::ENTRY, settings)?))
        } else if name == recover::ENTRY.name {
            let recover: Recover = read(&recover::ENTRY, settings)?;
            recover.check()?;
            Some(Self::Recover(Box::new(recover)))
        } else {
            None
        })
    }
}

fn read<S: serde::de::DeserializeOwned>(
    entry: &StageEntry,
    settings: &toml::Table,
) -> Result<S, Error> {
    settings.clone().try_into().map_err(|error: toml::de::Error| {
        let known = entry.options.iter().map(|option| option.key).collect::<Vec<_>>().join(", ");
        Error::Recipe {
            place: format!("step `{}`", entry.name),
            message: format!("{}; its settings are {known}", error.message()),
        }
    })
}
