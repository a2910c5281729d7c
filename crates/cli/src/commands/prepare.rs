//! `attar prepare`: other formats to data sets that attar reads.

use std::path::PathBuf;
use std::process::ExitCode;

use attar::{Error, prepare_wordnet};
use clap::{Args, ValueEnum};

use crate::print;

/// Turn other formats into data sets that attar reads.
///
/// `wordnet` makes a retrieval set: find the definition that a word stands for.
#[derive(Args)]
#[command(after_help = "Example:
  attar prepare wordnet dict/ -o wordnet-beir/ --queries 2000 --documents 10000")]
pub(crate) struct Prepare {
    /// What the source is
    format: Format,
    /// Source to read
    source: PathBuf,
    /// Folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Queries to take, spread over all
    #[arg(long, value_name = "N", default_value_t = 2000)]
    queries: usize,
    /// Documents to take besides the relevant ones, spread over all
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    documents: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// The dictionary files of `WordNet` (data.noun …)
    Wordnet,
}

impl Prepare {
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        let Format::Wordnet = self.format;
        let summary = prepare_wordnet(&self.source, &self.output, self.queries, self.documents)?;
        if json {
            print::json(&summary);
        } else {
            print::answer(&format!(
                "{}: {} documents, {} queries, {} relevant pairs\n",
                self.output.display(),
                summary.document_count,
                summary.query_count,
                summary.relevant_count
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}
