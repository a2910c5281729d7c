//! Importing a model and writing it with its `attar.toml` and tokenizer.

use std::path::{Path, PathBuf};

use attar_evaluate::{ImageInput, Preprocessing, Resample, TextInput};
use attar_graph::Model;
use attar_import::{FolderOptions, Imported, ImportedImage, Resampling};
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
    /// What else there is to know: weights of another type, what the output is.
    pub remarks: Vec<String>,
}

/// Imports a model.
///
/// # Errors
/// A source that is not what it should be, naming file and tensor.
pub fn import(request: &ImportRequest) -> Result<ImportOutcome, Error> {
    let folder = request.output.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    check_places(request, folder)?;
    let source = if let Some(name) = request.architecture {
        attar_import::import_weights(request.source, name).map(Imported::Image)
    } else {
        let options = FolderOptions { pooling: request.pooling, ..FolderOptions::default() };
        attar_import::import_folder(request.source, &options)
    };
    let Parts { model, preprocessing, tokenizer, unused, remarks } = Parts::new(source?);
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
        remarks,
    })
}

/// What is written, and what is said.
struct Parts {
    model: Model,
    preprocessing: Preprocessing,
    tokenizer: Option<PathBuf>,
    unused: Vec<String>,
    remarks: Vec<String>,
}

impl Parts {
    fn new(imported: Imported) -> Self {
        match imported {
            Imported::Image(image) => Self {
                preprocessing: Preprocessing {
                    image: Some(image_input(&image)),
                    ..Preprocessing::default()
                },
                model: image.model,
                tokenizer: None,
                unused: image.unused,
                remarks: image.remarks,
            },
            Imported::Text(text) => {
                let input =
                    TextInput { tokenizer: "tokenizer.json".into(), length_max: text.length_max };
                Self {
                    preprocessing: Preprocessing { text: Some(input), ..Preprocessing::default() },
                    model: text.model,
                    tokenizer: Some(text.tokenizer),
                    unused: text.unused,
                    remarks: text.remarks,
                }
            }
        }
    }
}

fn image_input(image: &ImportedImage) -> ImageInput {
    ImageInput {
        resize: image.resize,
        stretch: image.is_stretched,
        resample: match image.resampling {
            Resampling::Bilinear => Resample::Bilinear,
            Resampling::Bicubic => Resample::Bicubic,
        },
        size: image.size,
        mean: image.mean.clone(),
        std: image.std.clone(),
    }
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
