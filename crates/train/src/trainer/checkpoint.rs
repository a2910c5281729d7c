//! Checkpoints: everything that a run needs to go on as if nothing had happened.
//!
//! One safetensors file by rename, `step-N.safetensors`: weights, moments, averages and state, and
//! in its metadata the progress and a digest of the contents. The last two are kept, so that a
//! broken one has one before it. The weights that measured best stand in `best-N.safetensors`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use attar_ops::optimize::Moments;
use attar_tensor::{DType, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};

use super::Trainer;
use super::progress::Progress;
use crate::TrainError;
use crate::zeros::HeldZeros;

/// Where and how often a run is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoints {
    pub folder: PathBuf,
    /// Steps after which one is written.
    pub every_steps: Option<u64>,
    /// Seconds after which one is written.
    pub every_seconds: Option<u64>,
    /// Goes on from the newest whole checkpoint of the folder, if there is one. Else those that are
    /// there are removed.
    pub resume: bool,
    /// What else decides the result, such as the data: a checkpoint of another is refused.
    pub fingerprint: String,
}

/// Checkpoints kept of a run.
const KEPT: usize = 2;
/// What names of files begin with.
const STEP: &str = "step-";
const BEST: &str = "best-";
const PREFIXES: [&str; 2] = [STEP, BEST];
const KEY: &str = "attar";
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    progress: Progress,
    /// Of the options, the weights' names and what the caller gave.
    fingerprint: u64,
    /// Of all contents, in the order of their names.
    digest: u64,
}

impl Trainer {
    /// Keeps the run as it stands.
    pub(super) fn save(&self, checkpoints: &Checkpoints) -> Result<PathBuf, TrainError> {
        let folder = &checkpoints.folder;
        let path = folder.join(format!("{STEP}{:08}.safetensors", self.progress.step));
        let mut tensors = named("weight", self.tape.variables(), &self.variables);
        for (index, moment) in self.optimizer.moments().iter().enumerate() {
            let of = self.moments.iter().map(|moments| &moments.tensors[index]);
            tensors.extend(named(moment, self.trained(), of));
        }
        if let Some(average) = &self.average {
            tensors.extend(named("average", self.tape.variables(), average));
        }
        let masks = self.masks();
        tensors.extend(masks.iter().map(|(name, mask)| (format!("mask/{name}"), mask)));
        if let Some(pruning) = &self.pruning {
            let names = pruning.tensors.iter().map(|&index| &self.trained()[index]);
            let gathered = names.zip(&pruning.gathered);
            tensors.extend(gathered.map(|(name, sums)| (format!("importance/{name}"), sums)));
        }
        write(&path, tensors, self.progress.clone(), self.fingerprint(checkpoints))?;
        remove_older(folder)?;
        Ok(path)
    }

    /// The masks of gradual pruning, by name.
    pub(super) fn masks(&self) -> Vec<(&String, Tensor)> {
        let Some(pruning) = &self.pruning else { return Vec::new() };
        let mask = |&index: &usize| {
            let mask = self.held[index].as_ref()?;
            Some((&self.trained()[index], mask.to_tensor(self.variables[index].shape())))
        };
        pruning.tensors.iter().filter_map(mask).collect()
    }

    /// Keeps the weights that measured best.
    pub(super) fn save_best(&self, checkpoints: &Checkpoints) -> Result<(), TrainError> {
        let Some(best) = &self.best else { return Ok(()) };
        let path = best_path(&checkpoints.folder, self.progress.step);
        let tensors = named("weight", self.tape.variables(), best);
        write(&path, tensors, self.progress.clone(), self.fingerprint(checkpoints))
    }

    /// Goes on from the newest whole checkpoint. The file, or `None` if there is none at all.
    ///
    /// # Errors
    /// A checkpoint of another run, or nothing but broken ones.
    pub(super) fn resume(
        &mut self,
        checkpoints: &Checkpoints,
    ) -> Result<Option<PathBuf>, TrainError> {
        let mut failures = Vec::new();
        for path in files(&checkpoints.folder, STEP)?.into_iter().rev() {
            match self.restore(&path, checkpoints) {
                Ok(()) => {
                    failures.iter().for_each(|(path, _)| drop(fs::remove_file(path)));
                    return Ok(Some(path));
                }
                Err(error) if is_broken(&error) => failures.push((path, error)),
                Err(error) => return Err(error),
            }
        }
        failures.into_iter().next().map_or(Ok(None), |(_, error)| Err(error))
    }

    /// Makes room for a run that begins anew: checkpoints of an earlier one would pass for newer.
    pub(super) fn clear(checkpoints: &Checkpoints) -> Result<(), TrainError> {
        for prefix in PREFIXES {
            for path in files(&checkpoints.folder, prefix)? {
                fs::remove_file(&path).map_err(|error| file_error(&path, &error))?;
            }
        }
        Ok(())
    }

    fn restore(&mut self, path: &Path, checkpoints: &Checkpoints) -> Result<(), TrainError> {
        let (header, mut tensors) = read(path)?;
        if header.fingerprint != self.fingerprint(checkpoints) {
            return Err(TrainError::OtherRun { path: path.into() });
        }
        let mut take = |prefix: &str, name: &str, like: &Tensor| {
            let key = format!("{prefix}/{name}");
            let found = tensors.remove(&key).filter(|tensor| tensor.shape() == like.shape());
            found.ok_or_else(|| broken(path, format!("it lacks `{key}` {:?}", like.shape())))
        };
        let names = self.tape.variables();
        let mut of = |prefix: &str| -> Result<Vec<Tensor>, TrainError> {
            let pairs = names.iter().zip(&self.variables);
            pairs.map(|(name, like)| take(prefix, name, like)).collect()
        };
        let variables = of("weight")?;
        let average = self.average.is_some().then(|| of("average")).transpose()?;
        let mut moments = Vec::new();
        for (name, like) in self.trained().iter().zip(&self.variables) {
            let kept = self.optimizer.moments().iter();
            let kept =
                kept.map(|moment| take(moment, name, like)).collect::<Result<Vec<_>, _>>()?;
            moments.push(Moments::of(kept, like.shape()));
        }
        let mut masks = Vec::new();
        let mut gathered = Vec::new();
        if let Some(pruning) = &self.pruning {
            for (at, &index) in pruning.tensors.iter().enumerate() {
                let (name, like) = (&self.trained()[index], &self.variables[index]);
                masks.push((index, HeldZeros::of_ones(&take("mask", name, like)?)));
                if pruning.gathered.get(at).is_some() {
                    gathered.push(take("importance", name, like)?);
                }
            }
        }
        let best = match header.progress.best {
            None => None,
            Some(best) => {
                let path = best_path(&checkpoints.folder, best.step);
                let (_, mut tensors) = read(&path)?;
                let found = names.iter().map(|name| tensors.remove(&format!("weight/{name}")));
                let found = found.collect::<Option<Vec<_>>>();
                Some(found.ok_or_else(|| broken(&path, "it lacks weights".into()))?)
            }
        };
        (self.variables, self.average, self.moments) = (variables, average, moments);
        (self.best, self.progress) = (best, header.progress);
        masks.into_iter().for_each(|(index, mask)| self.held[index] = Some(mask));
        if let Some(pruning) = &mut self.pruning {
            pruning.gathered = gathered;
        }
        Ok(())
    }

    fn fingerprint(&self, checkpoints: &Checkpoints) -> u64 {
        let options = serde_json::to_string(&self.options).expect("options are plain data");
        let mut digest = Digest::default();
        for text in [&options, &checkpoints.fingerprint].into_iter().chain(self.tape.variables()) {
            digest.add(text.as_bytes());
        }
        digest.0
    }
}

/// Removes all but the newest checkpoints, and best weights that none of them names.
fn remove_older(folder: &Path) -> Result<(), TrainError> {
    let steps = files(folder, STEP)?;
    let (older, kept) = steps.split_at(steps.len().saturating_sub(KEPT));
    let mut named: Vec<PathBuf> = Vec::new();
    for path in kept {
        if let Ok(header) = read_header(path) {
            named.extend(header.progress.best.map(|best| best_path(folder, best.step)));
        }
    }
    let bests = files(folder, BEST)?;
    let unnamed = bests.iter().filter(|path| !named.contains(path));
    // What cannot be removed, or was cut short, costs space alone.
    let parts = with_extension(folder, "part")?;
    older.iter().chain(&parts).chain(unnamed).for_each(|path| drop(fs::remove_file(path)));
    Ok(())
}

fn best_path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("{BEST}{step:08}.safetensors"))
}

fn named<'a>(
    prefix: &str,
    names: &[String],
    tensors: impl IntoIterator<Item = &'a Tensor>,
) -> Vec<(String, &'a Tensor)> {
    names.iter().map(|name| format!("{prefix}/{name}")).zip(tensors).collect()
}

/// The files of a kind, oldest first. Their names sort by step.
fn files(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>, TrainError> {
    let mut paths = with_extension(folder, "safetensors")?;
    let name =
        |path: &Path| path.file_name().map_or(Vec::new(), |name| name.as_encoded_bytes().into());
    paths.retain(|path| name(path).starts_with(prefix.as_bytes()));
    paths.sort();
    Ok(paths)
}

fn with_extension(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, TrainError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(file_error(folder, &error)),
    };
    let is_one = |path: &PathBuf| path.extension().is_some_and(|found| found == extension);
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_one).collect())
}

fn file_error(path: &Path, error: &dyn std::fmt::Display) -> TrainError {
    TrainError::File { path: path.into(), message: error.to_string() }
}

fn broken(path: &Path, message: String) -> TrainError {
    TrainError::Checkpoint { path: path.into(), message }
}

fn is_broken(error: &TrainError) -> bool {
    matches!(error, TrainError::Checkpoint { .. } | TrainError::File { .. })
}

/// A tensor as safetensors writes it.
struct Contents<'a>(&'a Tensor);

impl View for Contents<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.0.bytes())
    }

    fn data_len(&self) -> usize {
        self.0.size_bytes()
    }
}

/// Writes a file that appears whole, by rename.
fn write(
    path: &Path,
    mut tensors: Vec<(String, &Tensor)>,
    progress: Progress,
    fingerprint: u64,
) -> Result<(), TrainError> {
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut digest = Digest::default();
    for (name, tensor) in &tensors {
        assert_eq!(tensor.dtype(), DType::F32, "variables are f32");
        digest.add(name.as_bytes());
        digest.add(tensor.bytes());
    }
    let header = Header { format: FORMAT, progress, fingerprint, digest: digest.0 };
    let header = serde_json::to_string(&header).expect("a header is plain data");
    let metadata = HashMap::from([(KEY.to_string(), header)]);
    let views = tensors.iter().map(|(name, tensor)| (name.as_str(), Contents(tensor)));
    let part = path.with_extension("part");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| file_error(folder, &error))?;
    }
    let written = safetensors::serialize_to_file(views, Some(metadata), &part);
    written.map_err(|error| file_error(&part, &error))?;
    let synced = File::open(&part).and_then(|file| file.sync_all());
    synced.and_then(|()| fs::rename(&part, path)).map_err(|error| file_error(path, &error))
}

fn header_of(path: &Path, bytes: &[u8]) -> Result<Header, TrainError> {
    let broken = |message: String| broken(path, message);
    let (_, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| broken(error.to_string()))?;
    let text = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
    let text = text.ok_or_else(|| broken("it is no checkpoint".into()))?;
    let header: Header = serde_json::from_str(text).map_err(|error| broken(error.to_string()))?;
    if header.format != FORMAT {
        return Err(broken(format!("its format is {}, expected {FORMAT}", header.format)));
    }
    Ok(header)
}

fn read_header(path: &Path) -> Result<Header, TrainError> {
    let bytes = attar_tensor::map_file(path).map_err(|error| file_error(path, &error))?;
    header_of(path, &bytes)
}

fn read(path: &Path) -> Result<(Header, HashMap<String, Tensor>), TrainError> {
    let bytes = fs::read(path).map_err(|error| file_error(path, &error))?;
    let header = header_of(path, &bytes)?;
    let broken = |message: String| broken(path, message);
    let file = SafeTensors::deserialize(&bytes).map_err(|error| broken(error.to_string()))?;
    let mut views = file.tensors();
    views.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut digest = Digest::default();
    let mut tensors = HashMap::new();
    for (name, view) in views {
        digest.add(name.as_bytes());
        digest.add(view.data());
        let contents = attar_tensor::Bytes::copy_from_slice(view.data());
        let tensor = Tensor::from_bytes(DType::F32, view.shape(), contents);
        let tensor = tensor.map_err(|error| broken(error.to_string()))?;
        tensors.insert(name, tensor.aligned());
    }
    if digest.0 != header.digest {
        return Err(broken("its contents are not what was written".into()));
    }
    Ok((header, tensors))
}

/// A check for broken files: words multiplied and rotated into a number. Not against forgery.
#[derive(Default)]
struct Digest(u64);

impl Digest {
    fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
        self.word(bytes.len() as u64);
    }

    fn word(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517C_C1B7_2722_0A95);
    }
}
