//! Importing a model and writing it with its `attar.toml` and tokenizer.

use std::path::{Path, PathBuf};

use attar_evaluate::{ImageInput, Preprocessing, TextInput};
use serde::Serialize;

use crate::{Error, save};

/// What to import and where to put it.
pub struct ImportRequest<'a> {
    /// A Hugging Face folder, or a file of weights where `architecture` is given.
    pub source: &'a Path,
    pub architecture: Option<&'a str>,
    pub pooling: bool,
    /// The ONNX file to write.
    pub output: &'a Path,
}

/// What was written.
#[derive(Debug, Serialize)]
pub struct ImportOutcome {
    pub model: PathBuf,
    pub size_bytes: u64,
    pub parameter_count: u64,
    pub node_count: usize,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    /// Weights in the source that the graph does not use.
    pub unused: Vec<String>,
}

/// Imports a model.
///
/// # Errors
/// A source that is not what it should be, naming file and tensor.
pub fn import(request: &ImportRequest) -> Result<ImportOutcome, Error> {
    let folder = request.output.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let (model, preprocessing, tokenizer, unused) = match request.architecture {
        Some(architecture) => {
            let imported = attar_import::import_weights(request.source, architecture)?;
            let image = ImageInput {
                resize: imported.resize,
                size: imported.size,
                mean: imported.mean.to_vec(),
                std: imported.std.to_vec(),
            };
            let preprocessing = Preprocessing { image: Some(image), ..Preprocessing::default() };
            (imported.model, preprocessing, None, Vec::new())
        }
        None => {
            let options =
                attar_import::TextOptions { pooling: request.pooling, ..Default::default() };
            let imported = attar_import::import_folder(request.source, &options)?;
            let text =
                TextInput { tokenizer: "tokenizer.json".into(), length_max: imported.length_max };
            let preprocessing = Preprocessing { text: Some(text), ..Preprocessing::default() };
            (imported.model, preprocessing, Some(imported.tokenizer), imported.unused)
        }
    };
    std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
    save(&model, request.output)?;
    if let Some(tokenizer) = tokenizer {
        copy(&tokenizer, &folder.join("tokenizer.json"))?;
    }
    preprocessing.save(folder)?;
    let summary = crate::inspect(&model, &crate::Bindings::new());
    Ok(ImportOutcome {
        model: request.output.to_path_buf(),
        size_bytes: attar_evaluate_size(request.output)?,
        parameter_count: summary.parameter_count,
        node_count: summary.node_count,
        inputs: summary.inputs,
        outputs: summary.outputs,
        unused,
    })
}

fn attar_evaluate_size(path: &Path) -> Result<u64, Error> {
    Ok(attar_evaluate::model_size_bytes(path)?)
}

/// Copies a file beside its target and renames it, unless the two are one.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    if from.canonicalize().ok().is_some_and(|from| to.canonicalize().is_ok_and(|to| to == from)) {
        return Ok(());
    }
    let part = to.with_extension("part");
    let copied = std::fs::copy(from, &part).and_then(|_| std::fs::rename(&part, to));
    copied.map_err(Error::file(from))
}
