//! `attar evaluate`: quality of models on a data set.

use std::path::PathBuf;
use std::process::ExitCode;

use attar::{
    Error, EvaluateOptions, RuntimeInvariance, Subject, evaluate_models, runtime_invariance,
};
use clap::Args;
use serde::Serialize;

use super::quality::{invariance_table, quality_table};
use crate::arguments::{DataArguments, RuntimeArguments};
use crate::print;

/// Measure models on a data set; the first is what the others are held against.
///
/// Retrieval (BEIR layout): nDCG@10, MRR@10, recall@100 by exact search. Images: top-1, top-5.
/// Pairs: Spearman. Labelled text and arrays: accuracy and macro-F1, or R² of values. Of a divided
/// data set the test split is taken. Differences come with a 95 % interval from a paired bootstrap.
#[derive(Args)]
#[command(after_help = "Examples:
  attar evaluate minilm.onnx --data cranfield/
  attar evaluate minilm.onnx runs/int8 --data cranfield/ --runtime ort
  attar evaluate mobilenet.onnx --data images/ --json")]
pub(crate) struct Evaluate {
    /// Models to measure (.onnx, or run folders)
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Data set to measure on
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Runtime: builtin or ort
    #[arg(long, value_name = "NAME", default_value = "builtin")]
    runtime: String,
    /// Examples run together
    #[arg(long, value_name = "N", default_value = "32")]
    batch: std::num::NonZeroUsize,
    /// Texts to embed alone and in batches; 0 to leave that out
    #[arg(long, value_name = "N", default_value_t = 128)]
    invariance: usize,
    #[command(flatten)]
    data_arguments: DataArguments,
    #[command(flatten)]
    runtime_arguments: RuntimeArguments,
}

#[derive(Serialize)]
struct Answer {
    quality: attar::Evaluation,
    invariance: Option<RuntimeInvariance>,
}

impl Evaluate {
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        let runtime = self.runtime_arguments.runtime(&self.runtime)?;
        let data = self.data_arguments.open(&self.data)?;
        let subjects: Vec<Subject> =
            self.models.iter().map(|path| Subject::open(path)).collect::<Result<_, _>>()?;
        let subjects: Vec<&Subject> = subjects.iter().collect();
        let bar = print::Bar::default();
        let options = EvaluateOptions {
            runtime: runtime.as_ref(),
            threads: self.runtime_arguments.threads(),
            batch_size: self.batch.get(),
            progress: &bar,
        };
        let quality = evaluate_models(&subjects, &data, &options)?;
        let has_texts = !data.texts().is_empty() && self.invariance > 0;
        let invariance = has_texts
            .then(|| runtime_invariance(&subjects, runtime.as_ref(), &data, self.invariance))
            .transpose()?;
        if json {
            print::json(&Answer { quality, invariance });
            return Ok(ExitCode::SUCCESS);
        }
        let names: Vec<String> = subjects.iter().map(|subject| subject.name.clone()).collect();
        let mut text = quality_table(&quality, &names);
        if let Some(invariance) = invariance {
            text.push('\n');
            text.push_str(&invariance_table(&[invariance], &names));
        }
        print::answer(&text);
        Ok(ExitCode::SUCCESS)
    }
}
