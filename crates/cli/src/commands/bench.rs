//! `attar bench`: time of models on a runtime.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use attar::{Error, NodeTime, Shape, Subject, latency_of, node_times};
use clap::Args;

use super::quality::latency_table;
use crate::arguments::RuntimeArguments;
use crate::print;
use crate::table::Table;

/// Time models on made-up inputs, run in turn so that ratios hold on a noisy machine.
///
/// Without `--runtime`, all runtimes found are timed. One thread unless `--threads` says more.
#[derive(Args)]
#[command(after_help = "Examples:
  attar bench minilm.onnx runs/int8 --batch 1 --length 128
  attar bench mobilenet.onnx --length 224 --threads 2 --runtime ort
  attar bench minilm.onnx runs/pruned --by-node")]
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
    /// Show what each node takes, on builtin: where one stands for several, they are fused
    #[arg(long, conflicts_with = "runtime")]
    by_node: bool,
    #[command(flatten)]
    runtime_arguments: RuntimeArguments,
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if (0.0..=3600.0).contains(&value) { Ok(value) } else { Err("from 0 to 3600".into()) }
}

impl Bench {
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        let subjects: Vec<Subject> =
            self.models.iter().map(|path| Subject::open(path)).collect::<Result<_, _>>()?;
        let subjects: Vec<&Subject> = subjects.iter().collect();
        let image = subjects[0].preprocessing.as_ref().and_then(|p| p.image.as_ref());
        let usual = image.map_or(128, |image| image.size);
        let length = self.length.map_or(usual, NonZeroUsize::get);
        let shape = Shape { batch: self.batch.get(), length };
        let threads = self.runtime_arguments.threads_or_one();
        let names: Vec<String> = subjects.iter().map(|s| s.name.clone()).collect();
        if self.by_node {
            let builtin = self.runtime_arguments.runtime("builtin")?;
            let rows = node_times(&subjects, builtin.as_ref(), threads, shape)?;
            if json {
                print::json(&rows);
            } else {
                print::answer(&node_table(&rows, &names));
            }
            return Ok(ExitCode::SUCCESS);
        }
        let runtimes = if let Some(name) = &self.runtime {
            vec![self.runtime_arguments.runtime(name)?]
        } else {
            let (runtimes, missing) = self.runtime_arguments.all()?;
            if let Some(why) = missing {
                eprintln!("warning: not timed on ONNX Runtime: {why}");
            }
            runtimes
        };
        let rows = runtimes
            .iter()
            .map(|runtime| latency_of(&subjects, runtime.as_ref(), threads, shape, self.seconds))
            .collect::<Result<Vec<_>, _>>()?;
        if json {
            print::json(&rows);
        } else {
            print::answer(&latency_table(&rows, &names));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Milliseconds of every node, in the order of the graph, and of each model in all.
fn node_table(rows: &[NodeTime], names: &[String]) -> String {
    let mut header = vec!["node".to_string(), "operator".to_string()];
    for name in names {
        header.extend([format!("ms of {name}"), "%".to_string()]);
    }
    let totals: Vec<f64> =
        (0..names.len()).map(|model| rows.iter().filter_map(|row| row.ms[model]).sum()).collect();
    let mut table = Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>()).left(2);
    let cells = |ms: &[Option<f64>]| -> Vec<String> {
        let of_model = |(ms, total): (&Option<f64>, &f64)| match ms {
            Some(ms) => [format!("{ms:.3}"), format!("{:.1}", 100.0 * ms / total)],
            None => ["-".to_string(), String::new()],
        };
        ms.iter().zip(&totals).flat_map(of_model).collect()
    };
    for row in rows {
        let mut line = vec![row.node.clone(), row.op_type.clone()];
        line.extend(cells(&row.ms));
        table.row(line);
    }
    let all: Vec<Option<f64>> = totals.iter().copied().map(Some).collect();
    let mut last = vec!["all".to_string(), String::new()];
    last.extend(cells(&all));
    table.row(last);
    table.to_string()
}
