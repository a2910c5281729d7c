//! Steps of a recipe that are no passes: they need data beside the graph, and change what stands
//! beside it, or take long.

use attar_compress::OptionEntry;

use crate::Error;
use crate::aware::{self, Aware};
use crate::recover::{self, Recover};
use crate::vocabulary::{self, Vocabulary};

/// A step that is no pass.
pub struct StageEntry {
    pub name: &'static str,
    pub summary: &'static str,
    pub options: &'static [OptionEntry],
}

/// Steps of a recipe that are no passes.
pub const STAGES: &[StageEntry] = &[vocabulary::ENTRY, aware::ENTRY, recover::ENTRY];

/// A stage with its settings.
pub(crate) enum Stage {
    Vocabulary(Vocabulary),
    Aware(Box<Aware>),
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
        } else if name == aware::ENTRY.name {
            let aware: Aware = read(&aware::ENTRY, settings)?;
            aware.check()?;
            Some(Self::Aware(Box::new(aware)))
        } else if name == recover::ENTRY.name {
            let recover: Recover = read(&recover::ENTRY, settings)?;
            recover.check()?;
            Some(Self::Recover(Box::new(recover)))
        } else {
            None
        })
    }
}

/// The settings of a stage. Those that several stages have stand in structs of their own, for which
/// serde tells no unknown key.
fn read<S: serde::de::DeserializeOwned>(
    entry: &StageEntry,
    settings: &toml::Table,
) -> Result<S, Error> {
    let is_known = |key: &&String| entry.options.iter().any(|option| option.key == key.as_str());
    let unknown = settings.keys().find(|key| !is_known(key));
    let found = match unknown {
        Some(key) => Err(format!("unknown field `{key}`")),
        None => {
            settings.clone().try_into().map_err(|error: toml::de::Error| error.message().into())
        }
    };
    found.map_err(|message: String| {
        let known = entry.options.iter().map(|option| option.key).collect::<Vec<_>>().join(", ");
        Error::Recipe {
            place: format!("step `{}`", entry.name),
            message: format!("{message}; its settings are {known}"),
        }
    })
}

/// Two lists of settings as one.
pub(crate) const fn joined<const N: usize>(
    first: &[OptionEntry],
    second: &[OptionEntry],
) -> [OptionEntry; N] {
    assert!(first.len() + second.len() == N);
    let mut all = [OptionEntry { key: "", default: "", help: "" }; N];
    let mut index = 0;
    while index < N {
        all[index] = if index < first.len() { first[index] } else { second[index - first.len()] };
        index += 1;
    }
    all
}
