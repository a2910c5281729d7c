//! `attar import`: other frameworks' models to ONNX.

use std::path::PathBuf;
use std::process::ExitCode;

use attar::{Error, ImportOutcome, ImportRequest};
use clap::Args;

use crate::print::{self, bytes, count};

/// Turn a Hugging Face folder or a file of weights into ONNX, without Python.
///
/// Pooling, normalization and the head of a cross-encoder or classifier go into the graph;
/// `attar.toml` and the tokenizer beside it. Of folders it knows the architectures bert, camembert,
/// deit, distilbert, electra, mpnet, roberta, vit and xlm-roberta, by the `model_type` of their
/// config.json; with weights as *.safetensors or *.bin, whole or in shards, of f32, f16 or bf16.
#[derive(Args)]
#[command(after_help = "Examples:
  attar import all-MiniLM-L6-v2/ -o minilm/minilm.onnx
  attar import ms-marco-MiniLM-L-6-v2/ -o reranker/reranker.onnx
  attar import bert-base/ --no-pooling -o bert/bert.onnx
  attar import vit-base-patch16-224/ -o vit/vit.onnx
  attar import --architecture mobilenet_v2 weights.pth -o mobilenet/mobilenet.onnx")]
pub(crate) struct Import {
    /// Folder (config.json, weights, tokenizer.json or `preprocessor_config.json`), or a file of
    /// weights
    source: PathBuf,
    /// Architecture of a file of weights: `mobilenet_v2`
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,
    /// Leave out pooling and head: the output is `last_hidden_state`
    #[arg(long)]
    no_pooling: bool,
    /// ONNX file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl Import {
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        let outcome = attar::import(&ImportRequest {
            source: &self.source,
            architecture: self.architecture.as_deref(),
            pooling: !self.no_pooling,
            output: &self.output,
        })?;
        show(&outcome, json);
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints what was written.
pub(crate) fn show(outcome: &ImportOutcome, json: bool) {
    if json {
        print::json(outcome);
        return;
    }
    let mut text = format!(
        "{}: {} parameters, {} nodes, {}\ninputs    {}\noutputs   {}\n",
        outcome.model.display(),
        count(outcome.parameter_count),
        outcome.node_count,
        bytes(outcome.size_bytes),
        outcome.inputs.join("\n          "),
        outcome.outputs.join("\n          "),
    );
    if !outcome.unused.is_empty() {
        text.push_str(&format!("not used  {}\n", outcome.unused.join("\n          ")));
    }
    if !outcome.remarks.is_empty() {
        text.push_str(&format!("note      {}\n", outcome.remarks.join("\n          ")));
    }
    print::answer(&text);
}
