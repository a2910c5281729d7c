//! `WordNet`'s files `data.*`, one synset a line: offset, file number, part of speech, the count of
//! words in hexadecimal, the words each with a number, and after `|` the gloss (wndb(5WN)).

use std::path::Path;

use crate::EvaluateError;

/// A synset: its words, its definition, and the file of the lexicographers it was written in.
pub(super) struct Synset {
    pub(super) words: Vec<String>,
    pub(super) definition: String,
    /// An index into [`TOPICS`].
    pub(super) topic: usize,
    /// Part of speech and offset, which name it.
    pub(super) id: String,
}

const FILES: &[&str] = &["data.noun", "data.verb", "data.adj", "data.adv"];

/// The lexicographers' files by number (lexnames(5WN)).
pub(super) const TOPICS: &[&str] = &[
    "adj.all",
    "adj.pert",
    "adv.all",
    "noun.Tops",
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.feeling",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.motive",
    "noun.object",
    "noun.person",
    "noun.phenomenon",
    "noun.plant",
    "noun.possession",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.shape",
    "noun.state",
    "noun.substance",
    "noun.time",
    "verb.body",
    "verb.change",
    "verb.cognition",
    "verb.communication",
    "verb.competition",
    "verb.consumption",
    "verb.contact",
    "verb.creation",
    "verb.emotion",
    "verb.motion",
    "verb.perception",
    "verb.possession",
    "verb.social",
    "verb.stative",
    "verb.weather",
    "adj.ppl",
];

/// The synsets of all parts of speech, in the order of their files.
///
/// # Errors
/// A file that is missing, or a line that is no synset.
pub(super) fn read_synsets(dictionary: &Path) -> Result<Vec<Synset>, EvaluateError> {
    let mut synsets = Vec::new();
    for file in FILES {
        let path = dictionary.join(file);
        let text = std::fs::read_to_string(&path).map_err(EvaluateError::file(&path))?;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with("  ")) {
            let synset = parse(line).ok_or_else(|| EvaluateError::Row {
                path: path.clone(),
                line: number + 1,
                message: "not a synset of WordNet".into(),
            })?;
            synsets.push(synset);
        }
    }
    Ok(synsets)
}

fn parse(line: &str) -> Option<Synset> {
    let (head, gloss) = line.split_once(" | ")?;
    let fields: Vec<&str> = head.split(' ').collect();
    let topic: usize = fields.get(1)?.parse().ok()?;
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
    let id = format!("{}{}", fields.get(2)?, fields[0]);
    (topic < TOPICS.len()).then_some(Synset { words, definition, topic, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_synset_line_gives_words_topic_and_definition_without_examples() {
        let line = "00001740 29 v 03 breathe 0 take_a_breath 0 respire(ip) 3 001 $ 00005041 v 0000 \
                    | draw air into, and expel out of, the lungs; \"I can breathe better\"";
        let synset = parse(line).unwrap();
        assert_eq!(synset.words, ["breathe", "take a breath", "respire"]);
        assert_eq!(synset.definition, "draw air into, and expel out of, the lungs");
        assert_eq!((TOPICS[synset.topic], synset.id.as_str()), ("verb.body", "v00001740"));
        assert!(parse(&line.replace(" 29 ", " 45 ")).is_none());
        assert_eq!(TOPICS.len(), 45);
    }
}
