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
    check_places(request, folder)?;
    let (model, preprocessing, tokenizer, unused) = if let Some(architecture) = request.architecture
    {
        let imported = attar_import::import_weights(request.source, architecture)?;
        let image = ImageInput {
            resize: imported.resize,
            size: imported.size,
            mean: imported.mean.to_vec(),
            std: imported.std.to_vec(),
        };
        let preprocessing = Preprocessing { image: Some(image), ..Preprocessing::default() };
        (imported.model, preprocessing, None, Vec::new())
    } else {
        let options = attar_import::TextOptions { pooling: request.pooling, ..Default::default() };
        let imported = attar_import::import_folder(request.source, &options)?;
        let text =
            TextInput { tokenizer: "tokenizer.json".into(), length_max: imported.length_max };
        let preprocessing = Preprocessing { text: Some(text), ..Preprocessing::default() };
        (imported.model, preprocessing, Some(imported.tokenizer), imported.unused)
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
        size_bytes: attar_evaluate::model_size_bytes(request.output)?,
        parameter_count: summary.parameter_count,
        node_count: summary.node_count,
        inputs: summary.inputs,
        outputs: summary.outputs,
        unused,
    })
}

/// That there is a source of the right kind, and no other model whose `attar.toml` would be lost.
fn check_places(request: &ImportRequest, folder: &Path) -> Result<(), Error> {
    let metadata = std::fs::metadata(request.source).map_err(Error::file(request.source))?;
    if metadata.is_file() && request.architecture.is_none() {
        return Err(Error::Usage {
            message: format!("{} is a file of weights", request.source.display()),
            hint: "say what network they belong to: `--architecture mobilenet_v2`".into(),
        });
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut others = entries.map(|entry| entry.path()).filter(|path| {
        path.extension().is_some_and(|extension| extension == "onnx")
            && path.file_name() != request.output.file_name()
    });
    match others.next() {
        Some(other) => Err(Error::Usage {
            message: format!("{} would lose its attar.toml", other.display()),
            hint: "a model and what it eats share a folder: write into another one".into(),
        }),
        None => Ok(()),
    }
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
