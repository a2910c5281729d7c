//! `attar new`: models with first values, and tokenizers, to be trained.

use std::path::PathBuf;
use std::process::ExitCode;

use attar::{ARCHITECTURES, Architecture, ArchitectureOption, COMMON_OPTIONS, Error, NewRequest};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use serde_json::json;

use super::import;
use crate::print;
use crate::table::Table;

/// What to make. The subcommands are those of the table, so that each has a `--help` of its own.
pub(crate) enum New {
    List,
    Model {
        architecture: &'static Architecture,
        /// Those that were given.
        options: Vec<(String, String)>,
        tokenizer: Option<PathBuf>,
        output: PathBuf,
    },
}

const ABOUT: &str = "Make an ONNX model with first values, to train from nothing or as a student";

const EXAMPLES: &str = "Examples:
  attar new --list
  attar new cnn --widths 32,64,128 -o cnn/model.onnx
  attar new lstm --tokenizer tokenizer.json --classes 4 -o lstm/model.onnx
  attar new bert --layers 3 --hidden 192 --heads 6 --ffn 768 -o student/model.onnx";

impl Args for New {
    fn augment_args(command: Command) -> Command {
        let list = Arg::new("list")
            .long("list")
            .action(ArgAction::SetTrue)
            .help("List the architectures with their options");
        command
            .about(ABOUT)
            .after_help(EXAMPLES)
            .arg(list)
            .arg_required_else_help(true)
            .subcommand_value_name("ARCHITECTURE")
            .subcommand_help_heading("Architectures")
            .subcommands(ARCHITECTURES.into_iter().map(architecture_command))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for New {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Some((name, matches)) = matches.subcommand() else { return Ok(Self::List) };
        let architecture = ARCHITECTURES.into_iter().find(|known| known.name == name);
        Ok(Self::model(architecture.expect("subcommands are those of the table"), matches))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn options_of(
    architecture: &Architecture,
) -> impl Iterator<Item = &'static ArchitectureOption> + use<> {
    architecture.options.iter().chain(&COMMON_OPTIONS)
}

fn reads_texts(architecture: &Architecture) -> bool {
    architecture.options.iter().any(|option| option.key == "vocabulary")
}

fn architecture_command(architecture: &'static Architecture) -> Command {
    let mut command = Command::new(architecture.name).about(architecture.summary);
    for option in options_of(architecture) {
        command = command.arg(
            Arg::new(option.key)
                .long(option.key)
                .value_name("VALUE")
                .help(option.help)
                .default_value(option.default),
        );
    }
    if reads_texts(architecture) {
        command = command.arg(
            Arg::new("tokenizer")
                .long("tokenizer")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("tokenizer.json to put beside the model; it says the vocabulary"),
        );
    }
    let output = Arg::new("output").short('o').long("output").value_name("FILE").required(true);
    command.arg(output.value_parser(value_parser!(PathBuf)).help("ONNX file to write"))
}

impl New {
    fn model(architecture: &'static Architecture, matches: &ArgMatches) -> Self {
        let given = |option: &&ArchitectureOption| {
            matches.value_source(option.key) == Some(ValueSource::CommandLine)
        };
        let value = |option: &ArchitectureOption| {
            let value: &String = matches.get_one(option.key).expect("it was given");
            (option.key.to_string(), value.clone())
        };
        let tokenizer = reads_texts(architecture).then(|| matches.get_one::<PathBuf>("tokenizer"));
        let output: &PathBuf = matches.get_one("output").expect("clap requires it");
        Self::Model {
            architecture,
            options: options_of(architecture).filter(given).map(value).collect(),
            tokenizer: tokenizer.flatten().cloned(),
            output: output.clone(),
        }
    }

    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        match self {
            Self::List => list(json),
            Self::Model { architecture, options, tokenizer, output } => {
                let outcome = attar::new_model(&NewRequest {
                    architecture: architecture.name,
                    options,
                    tokenizer: tokenizer.as_deref(),
                    output,
                })?;
                import::show(&outcome, json);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn list(json: bool) {
    if json {
        let row = |architecture: &&Architecture| {
            let options: Vec<_> = options_of(architecture)
                .map(|o| json!({ "key": o.key, "default": o.default, "help": o.help }))
                .collect();
            json!({
                "architecture": architecture.name,
                "summary": architecture.summary,
                "options": options,
            })
        };
        print::json(&ARCHITECTURES.iter().map(row).collect::<Vec<_>>());
        return;
    }
    for architecture in ARCHITECTURES {
        print::answer(&format!("{}\n  {}\n", architecture.name, architecture.summary));
        let mut table = Table::new(&["  option", "default", "what it is"]).left(3);
        for option in architecture.options {
            let cell = |text: &str| text.to_string();
            let key = format!("  {}", option.key);
            table.row(vec![key, cell(option.default), cell(option.help)]);
        }
        print::answer(&format!("{table}\n"));
    }
    let common: Vec<String> = COMMON_OPTIONS
        .iter()
        .map(|option| format!("`{}` ({}, default {})", option.key, option.help, option.default))
        .collect();
    print::answer(&format!("All have {}.\n", common.join(" and ")));
}
