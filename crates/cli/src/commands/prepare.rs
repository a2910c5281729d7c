//! `attar prepare`: other formats to data sets that attar reads.

use std::path::PathBuf;
use std::process::ExitCode;

use attar::{Error, prepare_wordnet, prepare_wordnet_topics};
use clap::{Args, ValueEnum};

use crate::print;
use crate::table::Table;

/// Turn other formats into data sets that attar reads.
///
/// `wordnet` makes a retrieval set: find the definition that a word stands for. `wordnet-topics`
/// makes labelled text: tell which of 45 topics a definition belongs to, split into train,
/// validation and test.
#[derive(Args)]
#[command(after_help = "Examples:
  attar prepare wordnet dict/ -o wordnet-beir/ --queries 2000 --documents 10000
  attar prepare wordnet-topics dict/ -o wordnet-topics/")]
pub(crate) struct Prepare {
    /// What the source is
    format: Format,
    /// Source to read
    source: PathBuf,
    /// Folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Queries of `wordnet` to take, spread over all
    #[arg(long, value_name = "N", default_value_t = 2000)]
    queries: usize,
    /// Documents of `wordnet` to take besides the relevant ones, spread over all
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    documents: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// The dictionary files of `WordNet` (data.noun …)
    Wordnet,
    /// The same, as labelled text
    WordnetTopics,
}

impl Prepare {
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        match self.format {
            Format::Wordnet => self.wordnet(json)?,
            Format::WordnetTopics => self.wordnet_topics(json)?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn wordnet(&self, json: bool) -> Result<(), Error> {
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
        Ok(())
    }

    fn wordnet_topics(&self, json: bool) -> Result<(), Error> {
        let summary = prepare_wordnet_topics(&self.source, &self.output)?;
        if json {
            print::json(&summary);
            return Ok(());
        }
        let mut table = Table::new(&["topic", "texts"]);
        for (topic, count) in &summary.class_counts {
            table.row(vec![(*topic).to_string(), count.to_string()]);
        }
        print::answer(&format!(
            "{}: {} texts to train on, {} to validate, {} to test\n{table}always `{}`: {:.4} of \
             the test texts\n",
            self.output.display(),
            summary.train_count,
            summary.validation_count,
            summary.test_count,
            summary.majority,
            summary.majority_rate
        ));
        Ok(())
    }
}
