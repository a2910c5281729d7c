//! A run folder: recipe, journal, checkpoints, and the result ready to serve.
//!
//! Work is never lost: after every step the model stands in `checkpoints/` and the journal says so;
//! `--resume` goes on behind the last step that is there. The result appears by rename.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use attar_compress::QuantizationRecord;
use attar_graph::Model;
use serde::{Deserialize, Serialize};

use crate::{Error, Recipe, StepOutcome, Subject, load, save};

/// One line of `journal.jsonl`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Entry {
    /// What the run is made of: a resumed run must be made of the same.
    Started {
        input_crc32: u32,
        input_size_bytes: u64,
        recipe: Recipe,
        calibration: Option<String>,
        calibration_count: usize,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        training: Option<String>,
    },
    Step {
        number: usize,
        outcome: Box<StepOutcome>,
        checkpoint: PathBuf,
    },
    Finished,
}

/// An open run.
pub(crate) struct RunFolder {
    path: PathBuf,
    journal: fs::File,
    /// Steps that are done, of this or an earlier session.
    pub(crate) outcomes: Vec<StepOutcome>,
    pub(crate) checkpoint: Option<PathBuf>,
}

impl RunFolder {
    /// Begins a run, or goes on with one.
    ///
    /// # Errors
    /// A folder that holds another run, or cannot be written.
    pub(crate) fn open(
        path: &Path,
        subject: &Subject,
        recipe: &Recipe,
        calibration: (Option<&Path>, usize),
        training: Option<&Path>,
        resume: bool,
    ) -> Result<Self, Error> {
        let started = Entry::Started {
            input_crc32: crc32(&subject.path)?,
            input_size_bytes: subject.size_bytes,
            recipe: recipe.clone(),
            calibration: calibration.0.map(|path| path.display().to_string()),
            calibration_count: calibration.1,
            training: training.map(|path| path.display().to_string()),
        };
        let journal_path = path.join("journal.jsonl");
        let (mut outcomes, mut checkpoint) = (Vec::new(), None);
        let entries = if journal_path.exists() { read_journal(&journal_path)? } else { Vec::new() };
        let is_new = entries.is_empty();
        if let Some(first) = entries.first() {
            check_resumable(path, &entries, line(first) == line(&started), resume)?;
            for entry in entries {
                if let Entry::Step { outcome, checkpoint: file, .. } = entry {
                    outcomes.push(*outcome);
                    checkpoint = Some(path.join(file));
                }
            }
            // Of every step but the last the checkpoint is gone; so it is if the last one's is.
            if checkpoint.as_ref().is_some_and(|checkpoint| !checkpoint.exists()) {
                (outcomes, checkpoint) = (Vec::new(), None);
            }
        } else if path.exists()
            && !journal_path.exists()
            && fs::read_dir(path).is_ok_and(|mut d| d.next().is_some())
        {
            return Err(Error::Usage {
                message: format!("{} is not empty and is no run", path.display()),
                hint: "choose a new folder".into(),
            });
        }
        fs::create_dir_all(path.join("checkpoints")).map_err(Error::file(path))?;
        remove_parts(&path.join("checkpoints"));
        let journal = OpenOptions::new().create(true).append(true).open(&journal_path);
        let mut run = Self {
            path: path.to_path_buf(),
            journal: journal.map_err(Error::file(&journal_path))?,
            outcomes,
            checkpoint,
        };
        if is_new {
            run.write("recipe.toml", recipe.to_toml().as_bytes())?;
            run.append(&started)?;
        }
        Ok(run)
    }

    fn append(&mut self, entry: &Entry) -> Result<(), Error> {
        let text = line(entry);
        let written = writeln!(self.journal, "{text}").and_then(|()| self.journal.sync_data());
        written.map_err(Error::file(&self.path))
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        write(&self.path, name, bytes)
    }

    /// The model after the last step that is done.
    pub(crate) fn resumed_model(&self) -> Result<Option<Model>, Error> {
        self.checkpoint.as_deref().map(load).transpose()
    }

    /// Keeps a step: the checkpoint first, then the journal, then the older checkpoint goes.
    pub(crate) fn step_done(&mut self, model: &Model, outcome: &StepOutcome) -> Result<(), Error> {
        let number = self.outcomes.len() + 1;
        let name = PathBuf::from(format!("checkpoints/step-{number}.onnx"));
        let path = self.path.join(&name);
        save(model, &path)?;
        self.append(&Entry::Step { number, outcome: Box::new(outcome.clone()), checkpoint: name })?;
        if let Some(older) = self.checkpoint.replace(path) {
            // The journal still names it; a run resumes from the last one that exists.
            let _ = fs::remove_file(&older);
        }
        self.outcomes.push(outcome.clone());
        Ok(())
    }

    /// Where a step that trains keeps its checkpoints.
    pub(crate) fn training_folder(&self, number: usize) -> PathBuf {
        self.path.join("checkpoints").join(format!("training-{number}"))
    }

    /// Keeps the tokenizer that a step makes.
    ///
    /// # Errors
    /// A disk that is full, for one.
    pub(crate) fn write_tokenizer(&self, number: usize, json: &str) -> Result<PathBuf, Error> {
        self.write(&tokenizer_name(number), json.as_bytes())?;
        self.tokenizer(number)
    }

    fn tokenizer(&self, number: usize) -> Result<PathBuf, Error> {
        let path = self.path.join(tokenizer_name(number));
        path.canonicalize().map_err(Error::file(&path))
    }

    /// The last tokenizer that steps which are done have made.
    pub(crate) fn resumed_tokenizer(&self) -> Option<PathBuf> {
        (1..=self.outcomes.len()).rev().find_map(|number| self.tokenizer(number).ok())
    }

    /// Takes back a run in which no step was done, so that the mended command may begin anew.
    pub(crate) fn discard_if_empty(&self) {
        if self.outcomes.is_empty() {
            let _ = fs::remove_dir_all(self.path.join("checkpoints"));
            let _ = fs::remove_file(self.path.join("journal.jsonl"));
            let _ = fs::remove_file(self.path.join("recipe.toml"));
            // Only if it is empty: the folder may have been the user's.
            let _ = fs::remove_dir(&self.path);
        }
    }

    /// Puts the result in place: the last checkpoint becomes `model.onnx`.
    pub(crate) fn publish(&mut self, subject: &Subject) -> Result<PathBuf, Error> {
        let mut latest = self.outcomes.iter().rev();
        let record = latest.find_map(|outcome| outcome.quantization.as_ref());
        publish(&self.path, subject, &subject.model, record)
    }

    /// The run is over; its checkpoints are no longer needed.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        self.append(&Entry::Finished)?;
        let _ = fs::remove_dir_all(self.path.join("checkpoints"));
        Ok(())
    }
}

fn tokenizer_name(number: usize) -> String {
    format!("checkpoints/tokenizer-{number}.json")
}

/// Writes a file of a run by rename.
pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let (path, part) = (folder.join(name), folder.join(format!("{name}.part")));
    let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, &path));
    written.map_err(Error::file(&path))
}

/// Writes a model with what is needed to feed it, and what is known of its ranges.
pub(crate) fn publish(
    folder: &Path,
    subject: &Subject,
    model: &Model,
    record: Option<&QuantizationRecord>,
) -> Result<PathBuf, Error> {
    let target = folder.join("model.onnx");
    save(model, &target)?;
    if subject.preprocessing.is_some() || record.is_some() {
        let mut preprocessing = subject.preprocessing.clone().unwrap_or_default();
        if let Some(record) = record {
            preprocessing.quantization = Some(quantization_table(record));
        }
        if let Some(text) = &mut preprocessing.text {
            let tokenizer = subject.folder().join(&text.tokenizer);
            crate::importing::copy(&tokenizer, &folder.join("tokenizer.json"))?;
            text.tokenizer = "tokenizer.json".into();
        }
        preprocessing.save(folder)?;
    }
    Ok(target)
}

fn quantization_table(record: &QuantizationRecord) -> toml::Table {
    let ranges = record.ranges.iter().map(|range| {
        let range = toml::Table::try_from(range).expect("a range is made of what TOML can hold");
        toml::Value::Table(range)
    });
    [("ranges".to_string(), toml::Value::Array(ranges.collect()))].into_iter().collect()
}

fn line(entry: &Entry) -> String {
    serde_json::to_string(entry).expect("a journal entry is made of what JSON can hold")
}

/// Whether an existing run may go on: it is asked to, it is not over, and it is the same run.
fn check_resumable(
    path: &Path,
    entries: &[Entry],
    is_same: bool,
    resume: bool,
) -> Result<(), Error> {
    if entries.iter().any(|entry| matches!(entry, Entry::Finished)) {
        return Err(Error::Usage {
            message: format!("{} holds a finished run", path.display()),
            hint: "choose another folder".into(),
        });
    }
    if !resume {
        return Err(Error::Usage {
            message: format!("{} holds an unfinished run", path.display()),
            hint: "go on with it by `--resume`, or choose another folder".into(),
        });
    }
    if !is_same {
        return Err(Error::Usage {
            message: format!("{} was begun with another model, recipe or sample", path.display()),
            hint: "resume with what it was begun with, or choose another folder".into(),
        });
    }
    Ok(())
}

/// Files that a write cut short has left.
fn remove_parts(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_part = path.extension().is_none_or(|x| x != "onnx" && x != "json");
        if is_part && path.is_file() {
            let _ = fs::remove_file(path);
        }
    }
}

/// The entries of a journal. A last line that a crash cut short is taken off the file too, so that
/// the next one begins on a line of its own.
fn read_journal(path: &Path) -> Result<Vec<Entry>, Error> {
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

pub(crate) fn crc32(path: &Path) -> Result<u32, Error> {
    use std::io::Read;
    let mut file = fs::File::open(path).map_err(Error::file(path))?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::file(path))? {
            0 => return Ok(hasher.finalize()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Step;
    use attar_graph::testing::graph_from_text;

    /// A folder of this test alone, removed when it ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("attar-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn subject(&self) -> Subject {
            let graph = graph_from_text("x: f32[n, 2]\nw = [1 2; 3 4]\ny = MatMul(x, w)");
            let opsets = [(String::new(), 17)].into_iter().collect();
            let model = Model { ir_version: 8, opsets, graph, ..Model::default() };
            let path = self.0.join("model.onnx");
            save(&model, &path).unwrap();
            Subject::open(&path).unwrap()
        }

        fn open(&self, subject: &Subject, resume: bool) -> Result<RunFolder, Error> {
            let recipe =
                Recipe { steps: vec![Step::parse("cleanup").unwrap(); 3], ..Recipe::default() };
            RunFolder::open(&self.0.join("run"), subject, &recipe, (None, 300), None, resume)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn outcome(pass: &str) -> StepOutcome {
        serde_json::from_value(serde_json::json!({
            "pass": pass, "edit_count": 1, "remarks": [], "node_count_before": 1, "node_count": 1,
            "weight_bytes_before": 1, "weight_bytes": 1, "seconds": 0.0
        }))
        .unwrap()
    }

    #[test]
    fn a_resumed_run_goes_on_behind_its_last_step() {
        let folder = Folder::new("resume");
        let subject = folder.subject();
        let mut run = folder.open(&subject, false).unwrap();
        run.step_done(&subject.model, &outcome("first")).unwrap();
        run.step_done(&subject.model, &outcome("second")).unwrap();
        drop(run);
        assert!(folder.open(&subject, false).is_err(), "a run is not begun over another");
        let run = folder.open(&subject, true).unwrap();
        let passes: Vec<&str> = run.outcomes.iter().map(|outcome| outcome.pass.as_str()).collect();
        assert_eq!(passes, ["first", "second"]);
        assert!(run.resumed_model().unwrap().is_some());
    }

    #[test]
    fn a_line_cut_by_a_crash_is_taken_off_the_journal() {
        let folder = Folder::new("journal");
        let subject = folder.subject();
        let mut run = folder.open(&subject, false).unwrap();
        run.step_done(&subject.model, &outcome("first")).unwrap();
        let journal = folder.0.join("run/journal.jsonl");
        let mut text = fs::read_to_string(&journal).unwrap();
        text.push_str("{\"event\":\"st");
        fs::write(&journal, text).unwrap();
        let mut run = folder.open(&subject, true).unwrap();
        run.step_done(&subject.model, &outcome("second")).unwrap();
        assert_eq!(folder.open(&subject, true).unwrap().outcomes.len(), 2);
    }

    #[test]
    fn a_run_without_a_step_leaves_nothing_behind() {
        let folder = Folder::new("empty");
        let run = folder.open(&folder.subject(), false).unwrap();
        run.discard_if_empty();
        assert!(!folder.0.join("run").exists());
    }

    #[test]
    fn another_recipe_cannot_resume() {
        let folder = Folder::new("other");
        let subject = folder.subject();
        folder.open(&subject, false).unwrap();
        let path = folder.0.join("run");
        let other = RunFolder::open(&path, &subject, &Recipe::default(), (None, 300), None, true);
        assert!(other.err().unwrap().to_string().contains("another model, recipe or sample"));
    }
}
