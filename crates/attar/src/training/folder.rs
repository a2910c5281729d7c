//! The run folder of a training: its journal, its checkpoints, and the result.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use attar_train::TrainerOptions;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::augment::Augment;
use crate::Error;

/// What a run is made of: a resumed run must be made of the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ingredients {
    pub(crate) input_crc32: u32,
    pub(crate) data: String,
    pub(crate) data_crc32: u32,
    pub(crate) options: TrainerOptions,
    pub(crate) augment: Augment,
    pub(crate) teacher_crc32: Option<u32>,
}

/// One line of `journal.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Entry {
    Started(Box<Ingredients>),
    Resumed,
    Step(StepEntry),
    Validation { step: u64, epoch: usize, metric: f64, is_best: bool, seconds: f64 },
    Epoch(CurvePoint),
    Stopped { step: u64 },
    Finished { step: u64 },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StepEntry {
    pub(crate) step: u64,
    pub(crate) epoch: usize,
    pub(crate) loss: f64,
    pub(crate) learning_rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gradient_norm: Option<f64>,
    pub(crate) examples_per_second: f64,
}

/// An epoch of the curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// From 1.
    pub epoch: usize,
    pub step: u64,
    /// Mean over the epoch's examples.
    pub loss: f64,
    pub learning_rate: f64,
    /// On the validation data.
    pub metric: Option<f64>,
    pub is_best: bool,
    pub seconds: f64,
}

/// An open run.
pub(crate) struct TrainFolder {
    pub(crate) path: PathBuf,
    journal: fs::File,
    /// Epochs of this and of earlier sessions.
    pub(crate) curve: Vec<CurvePoint>,
    is_new: bool,
}

impl TrainFolder {
    /// Begins a run, or goes on with one.
    ///
    /// # Errors
    /// A folder that holds another run, or cannot be written.
    pub(crate) fn open(
        path: &Path,
        ingredients: &Ingredients,
        resume: bool,
    ) -> Result<Self, Error> {
        let journal_path = path.join("journal.jsonl");
        let entries = if journal_path.exists() { read(&journal_path)? } else { Vec::new() };
        let is_new = entries.is_empty();
        if is_new && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            let is_own = |name: &std::ffi::OsStr| name == "journal.jsonl" || name == "checkpoints";
            let others = fs::read_dir(path).map_err(Error::file(path))?.flatten();
            if others.into_iter().any(|entry| !is_own(&entry.file_name())) {
                return Err(Error::Usage {
                    message: format!("{} is not empty and is no run", path.display()),
                    hint: "choose a new folder".into(),
                });
            }
        }
        if !is_new {
            check(path, &entries, ingredients, resume)?;
        }
        fs::create_dir_all(path.join("checkpoints")).map_err(Error::file(path))?;
        let journal = OpenOptions::new().create(true).append(true).open(&journal_path);
        let journal = journal.map_err(Error::file(&journal_path))?;
        let mut run = Self { path: path.into(), journal, curve: Vec::new(), is_new };
        for entry in entries {
            if let Entry::Epoch(point) = entry {
                run.keep(point);
            }
        }
        run.append(&if is_new {
            Entry::Started(Box::new(ingredients.clone()))
        } else {
            Entry::Resumed
        })?;
        Ok(run)
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Adds a line to the journal.
    ///
    /// # Errors
    /// A disk that is full, for one.
    pub(crate) fn append(&mut self, entry: &Entry) -> Result<(), Error> {
        let mut line = serde_json::to_string(entry).expect("an entry is made of JSON values");
        line.push('\n');
        let path = self.path.join("journal.jsonl");
        self.journal.write_all(line.as_bytes()).map_err(Error::file(&path))
    }

    /// Adds an epoch to the curve; one that was repeated after a crash replaces the old one.
    pub(crate) fn keep(&mut self, point: CurvePoint) {
        self.curve.retain(|known| known.epoch < point.epoch);
        self.curve.push(point);
    }

    /// Takes back a run that has not made a step, so that the mended command may begin anew.
    pub(crate) fn discard(&self) {
        if self.is_new {
            let _ = fs::remove_dir_all(self.checkpoints());
            let _ = fs::remove_file(self.path.join("journal.jsonl"));
            // Only if it is empty: the folder may have been the user's.
            let _ = fs::remove_dir(&self.path);
        }
    }

    /// The run is over; its checkpoints are no longer needed.
    pub(crate) fn finish(&mut self, step: u64) -> Result<(), Error> {
        self.append(&Entry::Finished { step })?;
        let _ = fs::remove_dir_all(self.checkpoints());
        Ok(())
    }
}

/// Whether an existing run may go on.
fn check(
    path: &Path,
    entries: &[Entry],
    ingredients: &Ingredients,
    resume: bool,
) -> Result<(), Error> {
    let fail = |message: String, hint: &str| Err(Error::Usage { message, hint: hint.into() });
    let place = path.display();
    if entries.iter().any(|entry| matches!(entry, Entry::Finished { .. })) {
        return fail(format!("{place} holds a finished run"), "choose another folder");
    }
    if !resume {
        let hint = "go on with it by `--resume`, or choose another folder";
        return fail(format!("{place} holds an unfinished run"), hint);
    }
    let Some(Entry::Started(begun)) = entries.first() else {
        return fail(format!("{place} holds another kind of run"), "choose another folder");
    };
    match difference(begun, ingredients) {
        None => Ok(()),
        Some(what) => fail(
            format!("{place} was begun otherwise: {what}"),
            "resume with what it was begun with, or choose another folder",
        ),
    }
}

/// The first thing in which two runs differ.
fn difference(begun: &Ingredients, now: &Ingredients) -> Option<String> {
    let value = |ingredients: &Ingredients| {
        serde_json::to_value(ingredients).expect("ingredients are made of JSON values")
    };
    first_difference("", &value(begun), &value(now))
}

fn first_difference(place: &str, a: &Value, b: &Value) -> Option<String> {
    if a == b {
        return None;
    }
    if let (Value::Object(a), Value::Object(b)) = (a, b) {
        let keys = a.keys().chain(b.keys());
        let found = keys.into_iter().find_map(|key| {
            let inner = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
            let null = Value::Null;
            first_difference(&inner, a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null))
        });
        return found;
    }
    Some(format!("`{place}` was {a} and is {b}"))
}

/// The entries of a journal. A last line that a crash cut short is taken off the file too, so that
/// the next one begins on a line of its own.
fn read(path: &Path) -> Result<Vec<Entry>, Error> {
    let text = fs::read_to_string(path).map_err(Error::file(path))?;
    let mut entries = Vec::new();
    let mut whole = 0;
    for line in text.split_inclusive('\n') {
        match serde_json::from_str(line) {
            Ok(entry) if line.ends_with('\n') => entries.push(entry),
            _ => break,
        }
        whole += line.len();
    }
    if whole < text.len() {
        let file = OpenOptions::new().write(true).open(path).map_err(Error::file(path))?;
        file.set_len(whole as u64).map_err(Error::file(path))?;
    }
    Ok(entries)
}
