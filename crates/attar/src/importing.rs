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
    let folder = folder_of(request.output);
    check_source(request)?;
    check_folder(folder, request.output)?;
    let source = if let Some(name) = request.architecture {
        attar_import::import_weights(request.source, name).map(Imported::Image)
    } else {
        let options = FolderOptions { pooling: request.pooling, ..FolderOptions::default() };
        attar_import::import_folder(request.source, &options)
    };
    Parts::new(source?).write(folder, request.output)
}

/// The folder that a file stands in.
pub(crate) fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What is written, and what is said.
pub(crate) struct Parts {
    pub(crate) model: Model,
    pub(crate) preprocessing: Preprocessing,
    pub(crate) tokenizer: Option<PathBuf>,
    pub(crate) unused: Vec<String>,
    pub(crate) remarks: Vec<String>,
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

    /// Writes the model and what feeding it needs.
    pub(crate) fn write(self, folder: &Path, output: &Path) -> Result<ImportOutcome, Error> {
        std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
        save(&self.model, output)?;
        if let Some(tokenizer) = &self.tokenizer {
            copy(tokenizer, &folder.join("tokenizer.json"))?;
        }
        self.preprocessing.save(folder)?;
        let summary = crate::inspect(&self.model, &crate::Bindings::new());
        Ok(ImportOutcome {
            model: output.to_path_buf(),
            size_bytes: attar_evaluate::model_size_bytes(output)?,
            parameter_count: summary.parameter_count,
            node_count: summary.node_count,
            inputs: summary.inputs,
            outputs: summary.outputs,
            unused: self.unused,
            remarks: self.remarks,
        })
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

/// That there is a source of the right kind.
fn check_source(request: &ImportRequest) -> Result<(), Error> {
    let metadata = std::fs::metadata(request.source).map_err(Error::file(request.source))?;
    if metadata.is_file() && request.architecture.is_none() {
        return Err(Error::Usage {
            message: format!("{} is a file of weights", request.source.display()),
            hint: "say what network they belong to: `--architecture mobilenet_v2`".into(),
        });
    }
    Ok(())
}

/// That there is no other model, which a new `attar.toml` would speak for.
pub(crate) fn check_folder(folder: &Path, output: &Path) -> Result<(), Error> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut others = entries.map(|entry| entry.path()).filter(|path| {
        path.extension().is_some_and(|extension| extension == "onnx")
            && path.file_name() != output.file_name()
    });
    match others.next() {
        Some(other) => Err(Error::Usage {
            message: format!("{} is there, and a folder has one attar.toml", other.display()),
            hint: "give the new model a folder of its own".into(),
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
