//! Pairs of texts with a score of likeness, as in the STS benchmark.

use std::path::Path;

use super::rows::{BadRows, delimiter_of, for_each_object, for_each_record, text_of};
use crate::EvaluateError;

#[derive(Clone, Debug, Default)]
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
                    let score: f64 = text_of(object, score)?.parse().ok()?;
                    if !score.is_finite() {
                        return None;
                    }
                    Some((text_of(object, first)?, text_of(object, second)?, score))
                });
                match row {
                    Some(row) => pairs.push(row),
                    None => bad.bad(path, line, "a row needs two texts and a score")?,
                }
                Ok(())
            })?,
            _ => pairs.load_columns(path, bad)?,
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

    fn load_columns(&mut self, path: &Path, bad: &mut BadRows) -> Result<(), EvaluateError> {
        let mut is_first = true;
        for_each_record(path, delimiter_of(path), bad, |line, record, bad| {
            let is_first = std::mem::take(&mut is_first);
            if record.len() != 3 {
                let message = format!("{} columns, expected 3: text, text, score", record.len());
                return bad.bad(path, line, message);
            }
            match record[2].trim().parse::<f64>() {
                Ok(score) if score.is_finite() => {
                    self.push((record[0].to_string(), record[1].to_string(), score));
                    Ok(())
                }
                // The first row may name the columns.
                _ if is_first => Ok(()),
                _ => bad.bad(path, line, format!("the score `{}` is no number", &record[2])),
            }
        })
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
