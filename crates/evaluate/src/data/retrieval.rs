//! Retrieval in BEIR layout: `corpus.jsonl`, `queries.jsonl`, `qrels/*.tsv`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::Split;
use super::rows::{BadRows, for_each_line, for_each_object, text_of};
use crate::EvaluateError;

/// Documents, the queries that have relevant ones, and which those are.
#[derive(Clone, Debug, Default)]
pub struct Retrieval {
    /// Title and text, with a space between.
    pub documents: Vec<String>,
    pub queries: Vec<String>,
    /// Per query, the indices of relevant documents with their grade.
    pub relevant: Vec<Vec<(usize, f64)>>,
}

impl Retrieval {
    pub(crate) fn load(
        folder: &Path,
        split: Split,
        bad: &mut BadRows,
    ) -> Result<Self, EvaluateError> {
        let (documents, document_ids) = texts(&folder.join("corpus.jsonl"), bad)?;
        let (all_queries, query_ids) = texts(&folder.join("queries.jsonl"), bad)?;
        let mut judged: BTreeMap<usize, Vec<(usize, f64)>> = BTreeMap::new();
        let path = qrels(folder, split)?;
        for_each_line(&path, bad, |line, text, bad| {
            let fields: Vec<&str> = text.split('\t').collect();
            let &[query, document, grade] = fields.as_slice() else {
                return bad.bad(&path, line, format!("{} columns, expected 3", fields.len()));
            };
            let Ok(grade) = grade.trim().parse::<f64>() else {
                // The first row names the columns.
                return if line == 1 {
                    Ok(())
                } else {
                    bad.bad(&path, line, format!("the grade `{grade}` is no number"))
                };
            };
            let Some(&query) = query_ids.get(query) else {
                return bad.bad(&path, line, format!("no query has the id `{query}`"));
            };
            let Some(&document) = document_ids.get(document) else {
                return bad.bad(&path, line, format!("no document has the id `{document}`"));
            };
            if grade > 0.0 {
                judged.entry(query).or_default().push((document, grade));
            }
            Ok(())
        })?;
        if judged.is_empty() {
            return Err(EvaluateError::Format {
                path,
                message: "no query has a relevant document".into(),
            });
        }
        let mut data = Self { documents, ..Self::default() };
        for (query, relevant) in judged {
            data.queries.push(all_queries[query].clone());
            data.relevant.push(relevant);
        }
        Ok(data)
    }
}

fn texts(
    path: &Path,
    bad: &mut BadRows,
) -> Result<(Vec<String>, HashMap<String, usize>), EvaluateError> {
    let (mut texts, mut ids) = (Vec::new(), HashMap::new());
    for_each_object(path, bad, |line, object, bad| {
        let (Some(id), Some(text)) = (text_of(object, "_id"), text_of(object, "text")) else {
            return bad.bad(path, line, "a row needs `_id` and `text`");
        };
        let title = text_of(object, "title").unwrap_or_default();
        if ids.insert(id.clone(), texts.len()).is_some() {
            return bad.bad(path, line, format!("the id `{id}` is used twice"));
        }
        texts.push(if title.is_empty() { text } else { format!("{title} {text}") });
        Ok(())
    })?;
    Ok((texts, ids))
}

fn own_qrels(folder: &Path, split: Split) -> Option<PathBuf> {
    let mut files = split.names().iter().map(|name| folder.join(format!("qrels/{name}.tsv")));
    files.find(|file| file.is_file())
}

/// Whether judgements of training and of this split lie there.
pub(super) fn has_split(folder: &Path, split: Split) -> bool {
    own_qrels(folder, split).is_some() && own_qrels(folder, Split::Train).is_some()
}

/// The file of the split, as `qrels/test.tsv`; or the only file there.
fn qrels(folder: &Path, split: Split) -> Result<PathBuf, EvaluateError> {
    if let Some(file) = own_qrels(folder, split) {
        return Ok(file);
    }
    let folder = folder.join("qrels");
    let entries = std::fs::read_dir(&folder).map_err(EvaluateError::file(&folder))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "tsv"));
    files.sort();
    match files.as_slice() {
        [only] => Ok(only.clone()),
        _ => Err(EvaluateError::Format {
            path: folder,
            message: format!("{} .tsv files and no {}.tsv", files.len(), split.names()[0]),
        }),
    }
}
