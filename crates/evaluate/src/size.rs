//! What a model takes on disk.

use std::path::Path;

use crate::EvaluateError;

/// Bytes of a model file and of the external data beside it (`NAME.data`).
///
/// # Errors
/// A file that is not there.
pub fn model_size_bytes(model: &Path) -> Result<u64, EvaluateError> {
    let size = std::fs::metadata(model).map_err(EvaluateError::file(model))?.len();
    let mut name = model.file_name().unwrap_or_default().to_os_string();
    name.push(".data");
    let data = std::fs::metadata(model.with_file_name(name)).map_or(0, |metadata| metadata.len());
    Ok(size + data)
}
