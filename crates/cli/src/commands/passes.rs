//! `attar passes`: what a recipe may ask for.

use std::process::ExitCode;

use attar::{Error, OptionEntry, PASSES, STAGES};
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
        let passes = PASSES.iter().map(|entry| (entry.name, entry.summary, entry.options));
        let stages = STAGES.iter().map(|entry| (entry.name, entry.summary, entry.options));
        let entries: Vec<_> = passes.chain(stages).collect();
        if json {
            let option =
                |o: &OptionEntry| json!({ "key": o.key, "default": o.default, "help": o.help });
            let row = |(name, summary, options): &(&str, &str, &[OptionEntry])| {
                let options: Vec<_> = options.iter().map(option).collect();
                json!({ "pass": name, "summary": summary, "settings": options })
            };
            print::json(&entries.iter().map(row).collect::<Vec<_>>());
            return Ok(ExitCode::SUCCESS);
        }
        for (name, summary, options) in entries {
            print::answer(&format!("{name}\n  {summary}\n"));
            for option in options {
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
