//! Hugging Face folders, whatever they hold: config.json decides.

use std::path::Path;

use attar_graph::Model;

use crate::build::OPSETS;
use crate::config::ConfigFile;
use crate::image::{FOLDER_ARCHITECTURES, ImportedImage, import_image};
use crate::text::{ImportedText, TEXT_ARCHITECTURES, import_text};
use crate::{ImportError, image};

/// How to import a folder.
#[derive(Clone, Debug)]
pub struct FolderOptions {
    /// Give one row of each text or image, by the pooling or the head that the folder has;
    /// otherwise the vectors of all tokens.
    pub pooling: bool,
    /// One of [`OPSETS`].
    pub opset: i64,
}

impl Default for FolderOptions {
    fn default() -> Self {
        Self { pooling: true, opset: *OPSETS.start() }
    }
}

/// What a folder held.
#[derive(Debug)]
pub enum Imported {
    Text(ImportedText),
    Image(ImportedImage),
}

impl Imported {
    pub fn model(&self) -> &Model {
        match self {
            Self::Text(text) => &text.model,
            Self::Image(image) => &image.model,
        }
    }
}

/// Every `model_type` that can be imported, in order of name.
pub fn folder_architectures() -> Vec<&'static str> {
    let texts = TEXT_ARCHITECTURES.iter().map(|kind| kind.model_type);
    let mut names: Vec<&str> =
        texts.chain(FOLDER_ARCHITECTURES.iter().map(|kind| kind.model_type)).collect();
    names.sort_unstable();
    names
}

/// Imports the network in `folder`, of the kind that its config.json names.
///
/// # Errors
/// Whatever would make the graph another model than the folder describes.
pub fn import_folder(folder: &Path, options: &FolderOptions) -> Result<Imported, ImportError> {
    // Where config.json stands in a folder of its own, modules.json names that: a text encoder.
    let is_image = folder.join("config.json").is_file()
        && image::is_known(ConfigFile::read(folder)?.model_type()?);
    if is_image {
        import_image(folder, options).map(Imported::Image)
    } else {
        import_text(folder, options).map(Imported::Text)
    }
}
