//! Arguments that several commands share.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use attar::{DataKind, Dataset, Error, Runtime, default_threads};
use clap::Args;

/// Where to run.
#[derive(Args)]
pub(crate) struct RuntimeArguments {
    /// ONNX Runtime's library, where it is not found by itself
    #[arg(long, value_name = "PATH")]
    ort: Option<PathBuf>,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl RuntimeArguments {
    pub(crate) fn runtime(&self, name: &str) -> Result<Box<dyn Runtime>, Error> {
        attar::runtime(name, self.ort.as_deref())
    }

    /// `builtin`, and ONNX Runtime if it is there; the second result says why it is not.
    pub(crate) fn all(&self) -> Result<(Vec<Box<dyn Runtime>>, Option<String>), Error> {
        let mut runtimes = vec![self.runtime("builtin")?];
        match self.runtime("ort") {
            Ok(runtime) => runtimes.push(runtime),
            // A library that the user named must be there.
            Err(error) if self.ort.is_some() => return Err(error),
            Err(error) => return Ok((runtimes, Some(error.chain()))),
        }
        Ok((runtimes, None))
    }

    pub(crate) fn threads(&self) -> NonZeroUsize {
        self.threads.unwrap_or_else(default_threads)
    }

    pub(crate) fn threads_or_one(&self) -> NonZeroUsize {
        self.threads.unwrap_or(NonZeroUsize::MIN)
    }
}

/// How to read data.
#[derive(Args)]
pub(crate) struct DataArguments {
    /// Kind of the data, where it is not recognized
    #[arg(long, value_name = "KIND", value_parser = data_kind)]
    data_kind: Option<DataKind>,
    /// Leave out rows that cannot be read, and count them
    #[arg(long)]
    skip_bad: bool,
}

fn data_kind(name: &str) -> Result<DataKind, String> {
    let found = DataKind::NAMES.iter().find(|(known, _)| *known == name);
    found.map(|(_, kind)| *kind).ok_or_else(|| {
        let names: Vec<&str> = DataKind::NAMES.iter().map(|(known, _)| *known).collect();
        format!("the kinds are {}", names.join(", "))
    })
}

impl DataArguments {
    pub(crate) fn open(&self, path: &Path) -> Result<Dataset, Error> {
        let (data, bad_count) = Dataset::open(path, self.data_kind, self.skip_bad)?;
        if bad_count > 0 {
            eprintln!("warning: {}: {bad_count} bad rows left out", path.display());
        }
        Ok(data)
    }

    /// Data to train on, and to watch training by.
    pub(crate) fn open_training(
        &self,
        path: &Path,
        validation: &attar::Validation,
        seed: u64,
    ) -> Result<attar::TrainingData, Error> {
        attar::TrainingData::open(path, validation, self.data_kind, self.skip_bad, seed)
    }

    /// Calibration data may be of another kind than what is evaluated on.
    pub(crate) fn open_calibration(&self, path: &Path, count: usize) -> Result<Dataset, Error> {
        let (data, bad_count) = Dataset::open_sample(path, self.skip_bad, count)?;
        if bad_count > 0 {
            eprintln!("warning: {}: {bad_count} bad rows left out", path.display());
        }
        Ok(data)
    }
}
