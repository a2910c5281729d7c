//! ONNX files ⇄ graphs: the only crate that sees protobuf.
//!
//! What attar has no place for in its graph is kept, encoded, beside what it has, and written
//! again: a model that is read and written says the same, field by field, those included that no
//! ONNX version defines. One thing changes: data in other files is found and becomes the model's
//! own.
#![deny(clippy::as_conversions)]

mod content;
mod error;
mod external;
mod fields;
mod graph;
mod load;
mod messages;
mod model;
mod node;
mod save;
mod sparse;
mod tensor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod types;
mod walk;
mod wire;

pub use content::{OptionalContent, optional_from_bytes, sequence_from_bytes, tensor_from_bytes};
pub use error::OnnxError;
pub use load::{from_bytes, load};
pub use save::{SaveOptions, save, to_bytes};
pub use types::{dtype_code, dtype_from_code};
