//! One text a line: `.txt`, or `.jsonl` with a `text` in every row.

use std::path::Path;

use super::rows::{BadRows, for_each_line, for_each_object, text_of};
use crate::EvaluateError;

pub(crate) fn load(path: &Path, bad: &mut BadRows) -> Result<Vec<String>, EvaluateError> {
    let mut texts = Vec::new();
    if path.extension().is_some_and(|extension| extension == "jsonl") {
        for_each_object(path, bad, |line, object, bad| match text_of(object, "text") {
            Some(text) => {
                texts.push(text);
                Ok(())
            }
            None => bad.bad(path, line, "a row needs `text`"),
        })?;
    } else {
        for_each_line(path, bad, |_, text, _| {
            texts.push(text.trim().to_string());
            Ok(())
        })?;
    }
    if texts.is_empty() {
        return Err(EvaluateError::Format {
            path: path.into(),
            message: "it holds no text".into(),
        });
    }
    Ok(texts)
}
