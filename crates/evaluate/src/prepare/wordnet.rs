//! `WordNet` to retrieval: find the gloss that a word stands for.
//!
//! Every synset is a document, its definition without examples (they quote the word itself); every
//! lemma is a query, and relevant are the definitions of all synsets it belongs to.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::synsets::{Synset, read_synsets};
use super::{begin, finish};
use crate::EvaluateError;
use crate::data::spread;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WordnetSummary {
    pub document_count: usize,
    pub query_count: usize,
    pub relevant_count: usize,
}

/// What this preparation writes.
const OWN: &[&str] = &["corpus.jsonl", "queries.jsonl", "qrels"];

/// Writes a retrieval set of `query_count` words and at least `document_count` definitions, spread
/// evenly over the alphabet and over the files; every relevant definition is among them.
///
/// # Errors
/// Files that are missing or no `WordNet` files, or a folder that cannot be written.
pub fn prepare_wordnet(
    dictionary: &Path,
    output: &Path,
    query_count: usize,
    document_count: usize,
) -> Result<WordnetSummary, EvaluateError> {
    let part = begin(output, OWN)?;
    let synsets = read_synsets(dictionary)?;
    let mut of_word: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, synset) in synsets.iter().enumerate() {
        for word in &synset.words {
            let known = of_word.entry(word.clone()).or_default();
            if known.last() != Some(&index) {
                known.push(index);
            }
        }
    }
    // Proper names are facts to know, not words to understand; and a word of many senses is no
    // query that one would type.
    let is_query = |word: &str, senses: &[usize]| {
        senses.len() <= 3 && word.chars().all(|c| c.is_lowercase() || c == ' ' || c == '-')
    };
    let candidates: Vec<(&String, &Vec<usize>)> =
        of_word.iter().filter(|(word, senses)| is_query(word, senses)).collect();
    let queries: Vec<(&String, &Vec<usize>)> =
        spread(candidates.len(), query_count).into_iter().map(|i| candidates[i]).collect();
    let mut is_kept = vec![false; synsets.len()];
    queries.iter().flat_map(|(_, senses)| senses.iter()).for_each(|&sense| is_kept[sense] = true);
    spread(synsets.len(), document_count).into_iter().for_each(|index| is_kept[index] = true);
    let written = write(&part, &synsets, &is_kept, &queries);
    let summary = written.map_err(EvaluateError::file(output))?;
    finish(&part, output)?;
    Ok(summary)
}

fn write(
    part: &Path,
    synsets: &[Synset],
    is_kept: &[bool],
    queries: &[(&String, &Vec<usize>)],
) -> std::io::Result<WordnetSummary> {
    std::fs::create_dir_all(part.join("qrels"))?;
    let create = |name: &str| std::fs::File::create(part.join(name)).map(std::io::BufWriter::new);
    let mut corpus = create("corpus.jsonl")?;
    for (index, synset) in synsets.iter().enumerate().filter(|(index, _)| is_kept[*index]) {
        let row = json!({ "_id": index.to_string(), "text": synset.definition });
        writeln!(corpus, "{row}")?;
    }
    corpus.flush()?;
    let (mut query_file, mut qrels) = (create("queries.jsonl")?, create("qrels/test.tsv")?);
    writeln!(qrels, "query-id\tcorpus-id\tscore")?;
    let mut relevant_count = 0;
    for (number, (word, senses)) in queries.iter().enumerate() {
        writeln!(query_file, "{}", json!({ "_id": number.to_string(), "text": word }))?;
        for sense in *senses {
            writeln!(qrels, "{number}\t{sense}\t1")?;
            relevant_count += 1;
        }
    }
    query_file.flush()?;
    qrels.flush()?;
    let document_count = is_kept.iter().filter(|&&kept| kept).count();
    Ok(WordnetSummary { document_count, query_count: queries.len(), relevant_count })
}
