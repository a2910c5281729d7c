//! `attar new`: models with first values, and tokenizers, to be trained.

use std::path::PathBuf;
use std::process::ExitCode;

use attar::{
    ARCHITECTURES, Architecture, ArchitectureOption, COMMON_OPTIONS, Error, NewRequest,
    TokenizerKind, TokenizerOutcome, TokenizerRequest,
};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use serde_json::json;

use super::import;
use crate::print;
use crate::table::Table;

/// What to make. The subcommands are those of the table, so that each has a `--help` of its own.
pub(crate) enum New {
    List,
    Tokenizer {
        kind: TokenizerKind,
        data: PathBuf,
        vocabulary: usize,
        count_min: u64,
        keeps_case: bool,
        skip_bad: bool,
        output: PathBuf,
    },
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
  attar new tokenizer --kind wordlevel --vocabulary 20000 --data topics/ -o tokenizer.json
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
            .subcommand(tokenizer_command())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for New {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Some((name, matches)) = matches.subcommand() else { return Ok(Self::List) };
        if name == TOKENIZER {
            return Ok(Self::tokenizer(matches));
        }
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
    command.arg(output("ONNX file to write"))
}

fn output(help: &'static str) -> Arg {
    let output = Arg::new("output").short('o').long("output").value_name("FILE").required(true);
    output.value_parser(value_parser!(PathBuf)).help(help)
}

const TOKENIZER: &str = "tokenizer";

fn tokenizer_command() -> Command {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let value = |name: &'static str, help: &'static str| Arg::new(name).long(name).help(help);
    let kinds: Vec<&str> = TokenizerKind::NAMES.iter().map(|(name, _)| *name).collect();
    Command::new(TOKENIZER)
        .about("A tokenizer from texts: whole words, or words and pieces of the rarer ones")
        .arg(
            value("kind", "Whole words, or pieces")
                .value_name("KIND")
                .value_parser(kinds)
                .default_value("wordpiece"),
        )
        .arg(
            value("data", "Texts to count, of a divided data set those to train on")
                .value_name("DATA")
                .value_parser(value_parser!(PathBuf))
                .required(true),
        )
        .arg(
            value("vocabulary", "Tokens at most")
                .value_name("N")
                .value_parser(value_parser!(u32).range(1..))
                .default_value("10000"),
        )
        .arg(
            value("count-min", "How often a word or a pair of pieces must come to have a token")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .default_value("2"),
        )
        .arg(flag("keep-case", "Tell capital letters from small ones"))
        .arg(flag("skip-bad", "Leave out rows that cannot be read, and count them"))
        .arg(output("tokenizer.json to write"))
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
        Self::Model {
            architecture,
            options: options_of(architecture).filter(given).map(value).collect(),
            tokenizer: tokenizer.flatten().cloned(),
            output: required(matches, "output"),
        }
    }

    fn tokenizer(matches: &ArgMatches) -> Self {
        let kind: String = required(matches, "kind");
        let found = TokenizerKind::NAMES.iter().find(|(name, _)| *name == kind);
        Self::Tokenizer {
            kind: found.expect("clap takes these alone").1,
            data: required(matches, "data"),
            vocabulary: required::<u32>(matches, "vocabulary") as usize,
            count_min: required(matches, "count-min"),
            keeps_case: matches.get_flag("keep-case"),
            skip_bad: matches.get_flag("skip-bad"),
            output: required(matches, "output"),
        }
    }

    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        match self {
            Self::List => list(json),
            Self::Tokenizer { kind, data, vocabulary, count_min, keeps_case, skip_bad, output } => {
                let request = TokenizerRequest {
                    kind: *kind,
                    data,
                    skip_bad: *skip_bad,
                    vocabulary: *vocabulary,
                    count_min: *count_min,
                    lowercase: !keeps_case,
                    output,
                };
                show_tokenizer(&attar::new_tokenizer(&request, &print::Bar::default())?, json);
            }
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

/// An argument that is required or has a default.
fn required<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> T {
    matches.get_one::<T>(name).expect("clap sees to it").clone()
}

fn show_tokenizer(outcome: &TokenizerOutcome, json: bool) {
    if outcome.bad_count > 0 {
        eprintln!("warning: {} bad rows left out", outcome.bad_count);
    }
    if json {
        print::json(outcome);
        return;
    }
    print::answer(&format!(
        "{}: {} tokens from {} texts of {} words ({} different), {:.2} % of them unknown\n",
        outcome.tokenizer.display(),
        outcome.token_count,
        outcome.text_count,
        outcome.word_count,
        outcome.distinct_count,
        100.0 * outcome.unknown,
    ));
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
