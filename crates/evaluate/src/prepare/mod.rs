//! Turning other formats into data sets that attar reads.

mod synsets;
mod topics;
mod wordnet;

use std::path::{Path, PathBuf};

use crate::EvaluateError;

pub use topics::{TopicsSummary, prepare_wordnet_topics};
pub use wordnet::{WordnetSummary, prepare_wordnet};

/// An empty folder beside `output` to write into; `own` names all that may lie in an older output.
///
/// # Errors
/// An output that holds other files, or a folder that cannot be made.
fn begin(output: &Path, own: &[&str]) -> Result<PathBuf, EvaluateError> {
    let mut part = output.as_os_str().to_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    for folder in [output, &part] {
        if folder.exists() && !is_own(folder, own).map_err(EvaluateError::file(folder))? {
            return Err(EvaluateError::Format {
                path: folder.into(),
                message: "it holds other files; choose a new folder".into(),
            });
        }
    }
    let made = if part.exists() { std::fs::remove_dir_all(&part) } else { Ok(()) };
    made.and_then(|()| std::fs::create_dir_all(&part)).map_err(EvaluateError::file(&part))?;
    Ok(part)
}

/// Puts what was written in place of an older output.
fn finish(part: &Path, output: &Path) -> Result<(), EvaluateError> {
    let moved = if output.exists() { std::fs::remove_dir_all(output) } else { Ok(()) };
    moved.and_then(|()| std::fs::rename(part, output)).map_err(EvaluateError::file(output))
}

/// Whether a folder holds nothing but what a preparation writes, and so may be replaced.
fn is_own(folder: &Path, own: &[&str]) -> std::io::Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !own.iter().any(|known| name == *known) {
            return Ok(false);
        }
    }
    Ok(true)
}
