//! `WordNet` to retrieval: find the gloss that a word stands for.
//!
//! Every synset is a document, its definition without examples (they quote the word itself); every
//! lemma is a query, and relevant are the definitions of all synsets it belongs to. The files
//! `data.*` have one synset a line: offset, file number, part of speech, the count of words in
//! hexadecimal, the words each with a number, and after `|` the gloss (wndb(5WN)).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use crate::EvaluateError;
use crate::data::spread;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WordnetSummary {
    pub document_count: usize,
    pub query_count: usize,
    pub relevant_count: usize,
}

const FILES: &[&str] = &["data.noun", "data.verb", "data.adj", "data.adv"];

/// A synset: its words and its definition.
struct Synset {
    words: Vec<String>,
    definition: String,
}

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
    if output.exists() && !is_own(output).map_err(EvaluateError::file(output))? {
        return Err(EvaluateError::Format {
            path: output.into(),
            message: "it holds other files; choose a new folder".into(),
        });
    }
    let mut synsets = Vec::new();
    for file in FILES {
        read(&dictionary.join(file), &mut synsets)?;
    }
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
    write(output, &synsets, &is_kept, &queries).map_err(EvaluateError::file(output))
}

/// Whether a folder holds nothing but what this preparation writes, and so may be replaced.
fn is_own(folder: &Path) -> std::io::Result<bool> {
    let known = ["corpus.jsonl", "queries.jsonl", "qrels"];
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !known.iter().any(|known| name == *known) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read(path: &Path, synsets: &mut Vec<Synset>) -> Result<(), EvaluateError> {
    let text = std::fs::read_to_string(path).map_err(EvaluateError::file(path))?;
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with("  ")) {
        let synset = parse(line).ok_or_else(|| EvaluateError::Row {
            path: path.into(),
            line: number + 1,
            message: "not a synset of WordNet".into(),
        })?;
        synsets.push(synset);
    }
    Ok(())
}

fn parse(line: &str) -> Option<Synset> {
    let (head, gloss) = line.split_once(" | ")?;
    let fields: Vec<&str> = head.split(' ').collect();
    let count = usize::from_str_radix(fields.get(3)?, 16).ok()?;
    let words = (0..count)
        .map(|i| {
            // Adjectives may carry a mark of their position: `galore(ip)`.
            let word = fields.get(4 + 2 * i)?;
            let word = word.split_once('(').map_or(*word, |(word, _)| word);
            Some(word.replace('_', " "))
        })
        .collect::<Option<Vec<_>>>()?;
    // Examples follow the definition in quotation marks.
    let definition = gloss.split('"').next()?.trim().trim_end_matches([';', ':', ' ']).to_string();
    Some(Synset { words, definition })
}

fn write(
    output: &Path,
    synsets: &[Synset],
    is_kept: &[bool],
    queries: &[(&String, &Vec<usize>)],
) -> std::io::Result<WordnetSummary> {
    let mut part = output.as_os_str().to_os_string();
    part.push(".part");
    let part = std::path::PathBuf::from(part);
    if part.exists() && is_own(&part)? {
        std::fs::remove_dir_all(&part)?;
    }
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
    if output.exists() {
        std::fs::remove_dir_all(output)?;
    }
    std::fs::rename(&part, output)?;
    let document_count = is_kept.iter().filter(|&&kept| kept).count();
    Ok(WordnetSummary { document_count, query_count: queries.len(), relevant_count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_synset_line_gives_words_and_definition_without_examples() {
        let line = "00001740 29 v 03 breathe 0 take_a_breath 0 respire(ip) 3 001 $ 00005041 v 0000 \
                    | draw air into, and expel out of, the lungs; \"I can breathe better\"";
        let synset = parse(line).unwrap();
        assert_eq!(synset.words, ["breathe", "take a breath", "respire"]);
        assert_eq!(synset.definition, "draw air into, and expel out of, the lungs");
    }
}
