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

/// Bytes that a line may have: a file without line ends would be held as a whole.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Calls `visit` with line number and text of every line that is not empty.
pub(crate) fn for_each_line(
    path: &Path,
    bad: &mut BadRows,
    mut visit: impl FnMut(usize, &str, &mut BadRows) -> Result<(), EvaluateError>,
) -> Result<(), EvaluateError> {
    use std::io::{BufRead, Read};
    let file = std::fs::File::open(path).map_err(EvaluateError::file(path))?;
    let mut reader = std::io::BufReader::new(file);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let mut part = reader.by_ref().take(LINE_BYTES_MAX + 1);
        if part.read_until(b'\n', &mut bytes).map_err(EvaluateError::file(path))? == 0 {
            break;
        }
        if bytes.len() as u64 > LINE_BYTES_MAX && bytes.last() != Some(&b'\n') {
            bad.bad(path, line, format!("the line is longer than {LINE_BYTES_MAX} bytes"))?;
            reader.skip_until(b'\n').map_err(EvaluateError::file(path))?;
            continue;
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

/// What parts the columns of a file, by its name.
pub(crate) fn delimiter_of(path: &Path) -> u8 {
    if path.extension().is_some_and(|extension| extension == "csv") { b',' } else { b'\t' }
}

/// Calls `visit` with every record of a file of columns, the first one included. Quotation marks
/// are plain text in tab-separated files.
pub(crate) fn for_each_record(
    path: &Path,
    delimiter: u8,
    bad: &mut BadRows,
    mut visit: impl FnMut(usize, &csv::StringRecord, &mut BadRows) -> Result<(), EvaluateError>,
) -> Result<(), EvaluateError> {
    let file = std::fs::File::open(path).map_err(EvaluateError::file(path))?;
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(delimiter == b',')
        .has_headers(false)
        .flexible(true)
        .from_reader(std::io::BufReader::new(file));
    for (index, record) in reader.records().enumerate() {
        match record {
            Ok(record) => {
                let line = record.position().map_or(index + 1, |position| position.line() as usize);
                visit(line, &record, bad)?;
            }
            // One that reading meets again and again.
            Err(error) if error.is_io_error() => {
                let message = error.to_string();
                return Err(EvaluateError::Format { path: path.into(), message });
            }
            Err(error) => {
                let line = error.position().map_or(index + 1, |position| position.line() as usize);
                bad.bad(path, line, error.to_string())?;
            }
        }
    }
    Ok(())
}
