//! One text a line: `.txt`, or `.jsonl` with a `text` in every row.

use std::path::Path;

use super::rows::{BadRows, for_each_line, for_each_object, text_of};
use super::spread;
use crate::EvaluateError;

pub(crate) fn load(path: &Path, bad: &mut BadRows) -> Result<Vec<String>, EvaluateError> {
    let mut texts = Vec::new();
    for_each_text(path, bad, |text| texts.push(text))?;
    not_empty(path, texts)
}

/// `count` texts spread over the file, which is read twice and never held.
pub(crate) fn load_sample(
    path: &Path,
    count: usize,
    bad: &mut BadRows,
) -> Result<Vec<String>, EvaluateError> {
    let mut total = 0;
    for_each_text(path, bad, |_| total += 1)?;
    let picked = spread(total, count);
    let (mut texts, mut index) = (Vec::with_capacity(picked.len()), 0);
    // Bad rows are counted already.
    for_each_text(path, &mut BadRows::new(true), |text| {
        if picked.get(texts.len()) == Some(&index) {
            texts.push(text);
        }
        index += 1;
    })?;
    not_empty(path, texts)
}

fn for_each_text(
    path: &Path,
    bad: &mut BadRows,
    mut visit: impl FnMut(String),
) -> Result<(), EvaluateError> {
    if path.extension().is_some_and(|extension| extension == "jsonl") {
        for_each_object(path, bad, |line, object, bad| match text_of(object, "text") {
            Some(text) => {
                visit(text);
                Ok(())
            }
            None => bad.bad(path, line, "a row needs `text`"),
        })
    } else {
        for_each_line(path, bad, |_, text, _| {
            visit(text.trim().to_string());
            Ok(())
        })
    }
}

fn not_empty(path: &Path, texts: Vec<String>) -> Result<Vec<String>, EvaluateError> {
    if texts.is_empty() {
        return Err(EvaluateError::Format {
            path: path.into(),
            message: "it holds no text".into(),
        });
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_what_would_be_picked_from_all() {
        let path = std::env::temp_dir().join(format!("attar-sample-{}.txt", std::process::id()));
        let rows: Vec<String> = (0..50).map(|i| format!("text {i}\n\n")).collect();
        let rows = rows.concat();
        std::fs::write(&path, rows).unwrap();
        let all = load(&path, &mut BadRows::new(false)).unwrap();
        for count in [1, 7, 50, 80] {
            let sample = load_sample(&path, count, &mut BadRows::new(false)).unwrap();
            let expected: Vec<&String> = spread(50, count).iter().map(|&i| &all[i]).collect();
            assert!(sample.iter().eq(expected), "{sample:?}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
