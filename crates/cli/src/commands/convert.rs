//! `attar convert`: a model written anew.

use std::path::PathBuf;
use std::process::ExitCode;

use attar::{ConvertRequest, Error};
use clap::Args;

use crate::print::{self, bytes};

/// Write a model for a newer operator set, or with its weights in a file of their own.
///
/// Without options the model is copied: what attar does not touch is written as it was read.
#[derive(Args)]
#[command(after_help = "Examples:
  attar convert old.onnx --opset 21 -o new.onnx
  attar convert model.onnx --inline -o flat.onnx
  attar convert model.onnx --external-data 1024 -o served/model.onnx")]
pub(crate) struct Convert {
    /// Model to read (.onnx)
    model: PathBuf,
    /// Operator set to convert to, newer than the model's
    #[arg(long, value_name = "N")]
    opset: Option<i64>,
    /// Put the nodes of functions in the place of their calls
    #[arg(long)]
    inline: bool,
    /// Weights of at least this many bytes go into FILE.data
    #[arg(long, value_name = "BYTES")]
    external_data: Option<usize>,
    /// ONNX file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl Convert {
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        let outcome = attar::convert(&ConvertRequest {
            model: &self.model,
            output: &self.output,
            opset: self.opset,
            inline: self.inline,
            external_data_min_bytes: self.external_data,
        })?;
        if json {
            print::json(&outcome);
            return Ok(ExitCode::SUCCESS);
        }
        let opset = match outcome.opset {
            same if same == outcome.opset_before => format!("opset {same}"),
            opset => format!("opset {} → {opset}", outcome.opset_before),
        };
        print::answer(&format!(
            "{}: {opset}, {} → {} nodes, {}\n",
            outcome.model.display(),
            outcome.node_count_before,
            outcome.node_count,
            bytes(outcome.size_bytes)
        ));
        Ok(ExitCode::SUCCESS)
    }
}
