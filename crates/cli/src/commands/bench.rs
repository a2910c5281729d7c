//! `attar bench`: time of models on a runtime.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use attar::{Error, Shape, Subject, latency_of};
use clap::Args;

use super::quality::latency_table;
use crate::arguments::RuntimeArguments;
use crate::print;

/// Time models on made-up inputs, run in turn so that ratios hold on a noisy machine.
///
/// Without `--runtime`, all runtimes found are timed. One thread unless `--threads` says more.
#[derive(Args)]
#[command(after_help = "Examples:
  attar bench minilm.onnx runs/int8 --batch 1 --length 128
  attar bench mobilenet.onnx --length 224 --threads 2 --runtime ort")]
pub(crate) struct Bench {
    /// Models to time (.onnx, or run folders); the first is what the others are held against
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Runtime: builtin or ort [default: all that are found]
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,
    /// Examples in a run
    #[arg(long, value_name = "N", default_value = "1")]
    batch: NonZeroUsize,
    /// Tokens of a text, or pixels of a side [default: 128, or the image's size]
    #[arg(long, value_name = "N")]
    length: Option<NonZeroUsize>,
    /// Seconds to run for, at least
    #[arg(long, value_name = "S", default_value = "3", value_parser = seconds)]
    seconds: f64,
    #[command(flatten)]
    runtime_arguments: RuntimeArguments,
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if (0.0..=3600.0).contains(&value) { Ok(value) } else { Err("from 0 to 3600".into()) }
}

impl Bench {
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        let runtimes = if let Some(name) = &self.runtime {
            vec![self.runtime_arguments.runtime(name)?]
        } else {
            let (runtimes, missing) = self.runtime_arguments.all()?;
            if let Some(why) = missing {
                eprintln!("warning: not timed on ONNX Runtime: {why}");
            }
            runtimes
        };
        let subjects: Vec<Subject> =
            self.models.iter().map(|path| Subject::open(path)).collect::<Result<_, _>>()?;
        let subjects: Vec<&Subject> = subjects.iter().collect();
        let image = subjects[0].preprocessing.as_ref().and_then(|p| p.image.as_ref());
        let usual = image.map_or(128, |image| image.size);
        let length = self.length.map_or(usual, NonZeroUsize::get);
        let shape = Shape { batch: self.batch.get(), length };
        let threads = self.runtime_arguments.threads_or_one();
        let rows = runtimes
            .iter()
            .map(|runtime| latency_of(&subjects, runtime.as_ref(), threads, shape, self.seconds))
            .collect::<Result<Vec<_>, _>>()?;
        if json {
            print::json(&rows);
        } else {
            let names: Vec<String> = subjects.iter().map(|s| s.name.clone()).collect();
            print::answer(&latency_table(&rows, &names));
        }
        Ok(ExitCode::SUCCESS)
    }
}
