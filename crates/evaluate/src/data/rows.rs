//! Reading files of rows, keeping count of the bad ones.

use std::path::Path;

use serde_json::Value;

use crate::EvaluateError;

/// Whether bad rows are errors, and how many have been left out.
pub(crate) struct BadRows {
    skips: bool,
    count: usize,
}

impl BadRows {
    pub(crate) fn new(skips: bool) -> Self {
        Self { skips, count: 0 }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Counts the row, or makes it an error.
    pub(crate) fn bad(
        &mut self,
        path: &Path,
        line: usize,
        message: impl Into<String>,
    ) -> Result<(), EvaluateError> {
        if self.skips {
            self.count += 1;
            return Ok(());
        }
        Err(EvaluateError::Row { path: path.into(), line, message: message.into() })
    }
}

/// Calls `visit` with line number and text of every line that is not empty.
pub(crate) fn for_each_line(
    path: &Path,
    bad: &mut BadRows,
    mut visit: impl FnMut(usize, &str, &mut BadRows) -> Result<(), EvaluateError>,
) -> Result<(), EvaluateError> {
    use std::io::BufRead;
    let file = std::fs::File::open(path).map_err(EvaluateError::file(path))?;
    let mut reader = std::io::BufReader::new(file);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(EvaluateError::file(path))? == 0 {
            break;
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) => visit(line, text.trim_end_matches(['\n', '\r']), bad)?,
            Err(_) => bad.bad(path, line, "the line is not UTF-8")?,
        }
    }
    Ok(())
}

/// Calls `visit` with every JSON object of a file that holds one a line.
pub(crate) fn for_each_object(
    path: &Path,
    bad: &mut BadRows,
    mut visit: impl FnMut(usize, &Value, &mut BadRows) -> Result<(), EvaluateError>,
) -> Result<(), EvaluateError> {
    for_each_line(path, bad, |line, text, bad| match serde_json::from_str::<Value>(text) {
        Ok(value) => visit(line, &value, bad),
        Err(error) => bad.bad(path, line, format!("not JSON: {error}")),
    })
}

/// The text under `key`; numbers count as texts, since ids are written both ways.
pub(crate) fn text_of(object: &Value, key: &str) -> Option<String> {
    match object.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
