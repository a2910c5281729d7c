//! Tensors: element type, shape and shared bytes. Knows no graph and no file format.

mod buffer;
mod convert;
mod dtype;
mod map;
mod minifloat;
mod packed;
mod shape;
mod tensor;
mod text;

pub use buffer::Buffer;
pub use bytes::Bytes;
pub use dtype::{DType, Element};
pub use half::{bf16, f16};
pub use map::map_file;
pub use minifloat::{Casting, ScaleRounding};
pub use tensor::{Tensor, element_count};

/// Why bytes cannot be a tensor, or a tensor cannot change its element type.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TensorError {
    #[error("shape {shape:?} of {dtype} needs {expected} bytes, found {found}")]
    Size { dtype: DType, shape: Vec<usize>, expected: usize, found: usize },

    #[error("shape {shape:?} has more elements than memory can address")]
    TooLarge { shape: Vec<usize> },

    #[error("{from} values cannot be converted to {to}")]
    Conversion { from: DType, to: DType },

    #[error("the string `{text}` is no {to}")]
    Number { text: String, to: DType },
}
