//! The command line: parses, calls attar, prints. Answers go to stdout, progress to stderr.
#![allow(clippy::print_stdout)]

mod arguments;
mod commands;
mod print;
mod progress;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Make a trained network small and fast, and prove what that cost.
///
/// Exit status: 0 yes, 1 no (a budget was missed), 2 error.
#[derive(Parser)]
#[command(name = "attar", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  attar import all-MiniLM-L6-v2/ -o minilm/minilm.onnx
  attar compress minilm/minilm.onnx --step quantize.static --calibration texts.txt -o runs/int8
  attar evaluate minilm/minilm.onnx runs/int8 --data beir/
  attar bench minilm/minilm.onnx runs/int8 --runtime ort --batch 1 --length 128";

#[derive(Subcommand)]
enum Command {
    Inspect(commands::inspect::Inspect),
    Import(commands::import::Import),
    New(commands::new::New),
    Convert(commands::convert::Convert),
    Prepare(commands::prepare::Prepare),
    Train(Box<commands::train::Train>),
    Compress(commands::compress::Compress),
    Evaluate(commands::evaluate::Evaluate),
    Bench(commands::bench::Bench),
    Sensitivity(commands::sensitivity::Sensitivity),
    Operators(commands::operators::Operators),
    Passes(commands::passes::Passes),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Inspect(command) => command.run(cli.json),
        Command::Import(command) => command.run(cli.json),
        Command::New(command) => command.run(cli.json),
        Command::Convert(command) => command.run(cli.json),
        Command::Prepare(command) => command.run(cli.json),
        Command::Train(command) => command.run(cli.json),
        Command::Compress(command) => command.run(cli.json),
        Command::Evaluate(command) => command.run(cli.json),
        Command::Bench(command) => command.run(cli.json),
        Command::Sensitivity(command) => command.run(cli.json),
        Command::Operators(command) => command.run(cli.json),
        Command::Passes(command) => command.run(cli.json),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            print::error(&error);
            ExitCode::from(2)
        }
    }
}
