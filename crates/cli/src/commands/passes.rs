//! `attar passes`: what a recipe may ask for.

use std::process::ExitCode;

use attar::{Error, PASSES};
use clap::Args;
use serde_json::json;

use crate::print;

/// List the passes and their settings.
#[derive(Args)]
#[command(after_help = "A pass on the command line:
  attar compress model.onnx --step prune.magnitude:sparsity=0.5,scope=global -o runs/pruned
and in a recipe:
  [[step]]
  pass = \"prune.magnitude\"
  sparsity = 0.5
  scope = \"global\"
Every step also takes `exclude`, a list of node and tensor names in which * stands for any text.")]
pub(crate) struct Passes {}

impl Passes {
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)] // as every command
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        if json {
            let rows: Vec<_> = PASSES
                .iter()
                .map(|entry| {
                    let options: Vec<_> = entry
                        .options
                        .iter()
                        .map(|o| json!({ "key": o.key, "default": o.default, "help": o.help }))
                        .collect();
                    json!({ "pass": entry.name, "summary": entry.summary, "settings": options })
                })
                .collect();
            print::json(&rows);
            return Ok(ExitCode::SUCCESS);
        }
        for entry in PASSES {
            print::answer(&format!("{}\n  {}\n", entry.name, entry.summary));
            for option in entry.options {
                let default = if option.default.is_empty() {
                    "must be given".to_string()
                } else {
                    format!("default {}", option.default)
                };
                print::answer(&format!("    {}  {} ({default})\n", option.key, option.help));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
