//! Trained weights of other frameworks as graphs, without Python. Knows no ONNX file and no pass.
//!
//! [`import_folder`] reads Hugging Face and sentence-transformers folders, [`import_weights`]
//! state dicts of image networks. Nothing that a file says is executed.

mod build;
mod error;
mod image;
mod text;
mod weights;

pub use build::OPSETS;
pub use error::ImportError;
pub use image::{
    IMAGE_ARCHITECTURES, ImageArchitecture, ImportedImage, import_mobilenet_v2, import_weights,
};
pub use text::{ImportedText, TEXT_ARCHITECTURES, TextArchitecture, TextOptions, import_folder};
pub use weights::read_weights;
