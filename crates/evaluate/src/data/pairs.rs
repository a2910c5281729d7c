//! Pairs of texts with a score of likeness, as in the STS benchmark.

use std::path::Path;

use super::rows::{BadRows, for_each_object, text_of};
use crate::EvaluateError;

#[derive(Debug, Default)]
pub struct Pairs {
    pub first: Vec<String>,
    pub second: Vec<String>,
    pub scores: Vec<f64>,
}

/// Names under which a row of JSON may hold its texts and score.
const KEYS: &[[&str; 3]] = &[
    ["sentence1", "sentence2", "score"],
    ["text1", "text2", "score"],
    ["first", "second", "score"],
];

impl Pairs {
    pub(crate) fn load(path: &Path, bad: &mut BadRows) -> Result<Self, EvaluateError> {
        let mut pairs = Self::default();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl") => for_each_object(path, bad, |line, object, bad| {
                let row = KEYS.iter().find_map(|[first, second, score]| {
                    let score = text_of(object, score)?.parse().ok()?;
                    Some((text_of(object, first)?, text_of(object, second)?, score))
                });
                match row {
                    Some(row) => pairs.push(row),
                    None => bad.bad(path, line, "a row needs two texts and a score")?,
                }
                Ok(())
            })?,
            Some("csv") => pairs.load_columns(path, b',', true, bad)?,
            // Quotation marks are plain text in tab-separated files.
            _ => pairs.load_columns(path, b'\t', false, bad)?,
        }
        if pairs.scores.len() < 2 {
            return Err(EvaluateError::Format {
                path: path.into(),
                message: "fewer than two pairs".into(),
            });
        }
        Ok(pairs)
    }

    fn push(&mut self, (first, second, score): (String, String, f64)) {
        self.first.push(first);
        self.second.push(second);
        self.scores.push(score);
    }

    fn load_columns(
        &mut self,
        path: &Path,
        delimiter: u8,
        quoting: bool,
        bad: &mut BadRows,
    ) -> Result<(), EvaluateError> {
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .quoting(quoting)
            .has_headers(false)
            .flexible(true)
            .from_path(path)
            .map_err(|error| EvaluateError::Format {
                path: path.into(),
                message: error.to_string(),
            })?;
        for (index, record) in reader.records().enumerate() {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    bad.bad(path, index + 1, error.to_string())?;
                    continue;
                }
            };
            let line = record.position().map_or(index + 1, |position| position.line() as usize);
            if record.len() != 3 {
                bad.bad(
                    path,
                    line,
                    format!("{} columns, expected 3: text, text, score", record.len()),
                )?;
                continue;
            }
            match record[2].trim().parse::<f64>() {
                Ok(score) if score.is_finite() => {
                    self.push((record[0].to_string(), record[1].to_string(), score));
                }
                // The first row may name the columns.
                _ if index == 0 => {}
                _ => bad.bad(path, line, format!("the score `{}` is no number", &record[2]))?,
            }
        }
        Ok(())
    }
}

/// Whether the first row of a .jsonl file is a pair.
pub(crate) fn is_pairs_jsonl(path: &Path) -> Result<bool, EvaluateError> {
    let mut found = None;
    for_each_object(path, &mut BadRows::new(true), |_, object, _| {
        let is_pair = KEYS.iter().any(|keys| keys.iter().all(|key| object.get(*key).is_some()));
        found.get_or_insert(is_pair);
        Ok(())
    })?;
    Ok(found.unwrap_or(false))
}
