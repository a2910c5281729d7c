//! `WordNet` to labelled text: tell from a definition which of 45 topics it belongs to.
//!
//! The topic is the lexicographers' file that a synset was written in, such as `noun.animal`. Every
//! synset goes to one split by a hash of its name, whatever the other synsets are.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::synsets::{Synset, TOPICS, read_synsets};
use super::{begin, finish};
use crate::EvaluateError;

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopicsSummary {
    pub train_count: usize,
    pub validation_count: usize,
    pub test_count: usize,
    /// Every topic with its count over all splits, in order of its name.
    pub class_counts: Vec<(&'static str, usize)>,
    /// The largest topic, and its part of the test split: what always naming it would get right.
    pub majority: &'static str,
    pub majority_rate: f64,
}

const OWN: &[&str] = &["train.tsv", "validation.tsv", "test.tsv"];

/// Of a hundred synsets, those that are tested on, and those that training is watched by.
const TEST_PERCENT: u64 = 10;
const VALIDATION_PERCENT: u64 = 10;

/// Writes `train.tsv`, `validation.tsv` and `test.tsv` of definition and topic: 80, 10 and 10 of a
/// hundred. A definition that several synsets share, word for word, goes with the first of them, so
/// that no test text was trained on.
///
/// # Errors
/// Files that are missing or no `WordNet` files, or a folder that cannot be written.
pub fn prepare_wordnet_topics(
    dictionary: &Path,
    output: &Path,
) -> Result<TopicsSummary, EvaluateError> {
    let part = begin(output, OWN)?;
    let synsets = read_synsets(dictionary)?;
    let summary = write(&part, &synsets).map_err(EvaluateError::file(output))?;
    finish(&part, output)?;
    Ok(summary)
}

fn write(part: &Path, synsets: &[Synset]) -> std::io::Result<TopicsSummary> {
    let mut files = Vec::new();
    for name in OWN {
        let mut file = std::io::BufWriter::new(std::fs::File::create(part.join(name))?);
        writeln!(file, "text\tlabel")?;
        files.push(file);
    }
    let mut seen = std::collections::HashSet::new();
    let mut counts = vec![[0; 3]; TOPICS.len()];
    for synset in synsets {
        let text = synset.definition.replace(['\t', '\n', '\r'], " ");
        if text.is_empty() || !seen.insert(text.clone()) {
            continue;
        }
        let split = split_of(&synset.id);
        writeln!(files[split], "{text}\t{}", TOPICS[synset.topic])?;
        counts[synset.topic][split] += 1;
    }
    for file in &mut files {
        file.flush()?;
    }
    let total = |split: usize| counts.iter().map(|topic| topic[split]).sum::<usize>();
    // The first of equally large ones: `max_by_key` would take the last.
    let train_count = |topic: &usize| counts[*topic][0];
    let majority = (0..TOPICS.len()).rev().max_by_key(train_count).expect("there are topics");
    let all = |topic: &[usize; 3]| topic.iter().sum::<usize>();
    let mut class_counts: Vec<_> = TOPICS.iter().copied().zip(counts.iter().map(all)).collect();
    class_counts.sort_unstable();
    Ok(TopicsSummary {
        train_count: total(0),
        validation_count: total(1),
        test_count: total(2),
        class_counts,
        majority: TOPICS[majority],
        majority_rate: counts[majority][2] as f64 / total(2).max(1) as f64,
    })
}

/// 0 to train, 1 to validate, 2 to test, by the FNV-1a hash of the synset's name.
fn split_of(id: &str) -> usize {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    // The low bits of this hash are its weakest.
    match (hash >> 24) % 100 {
        part if part < TEST_PERCENT => 2,
        part if part < TEST_PERCENT + VALIDATION_PERCENT => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_synset_keeps_its_split_and_splits_have_their_sizes() {
        let mut counts = [0_usize; 3];
        (0..10_000).for_each(|offset| counts[split_of(&format!("n{offset:08}"))] += 1);
        assert!(counts[1].abs_diff(1000) < 100 && counts[2].abs_diff(1000) < 100, "{counts:?}");
        assert_eq!(split_of("n00001740"), split_of("n00001740"));
    }
}
