//! Trained weights of other frameworks as graphs, without Python. Knows no ONNX file and no pass.
//!
//! [`import_folder`] reads Hugging Face and sentence-transformers folders, [`import_weights`]
//! state dicts of image networks; [`new_model`] makes networks to be trained. Nothing that a file says is executed.

mod architectures;
mod build;
mod config;
mod error;
mod folder;
mod image;
mod text;
mod transformer;
mod weights;

pub use architectures::{
    ARCHITECTURES, Architecture, ArchitectureOption, COMMON_OPTIONS, ModelInput, NewModel,
    new_model,
};
pub use build::OPSETS;
pub use error::ImportError;
pub use folder::{FolderOptions, Imported, folder_architectures, import_folder};
pub use image::{
    FOLDER_ARCHITECTURES, IMAGE_ARCHITECTURES, ImageArchitecture, ImageFolderArchitecture,
    ImportedImage, Resampling, import_image, import_mobilenet_v2, import_weights,
};
pub use text::{ImportedText, TEXT_ARCHITECTURES, TextArchitecture, import_text};
pub use weights::read_weights;
