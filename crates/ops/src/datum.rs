//! What flows along a value: a tensor, a sequence of tensors, or nothing (ONNX's empty optional).

use attar_tensor::Tensor;

use crate::OpError;

/// The content of one value while a graph runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum {
    Tensor(Tensor),
    Sequence(Vec<Tensor>),
    /// An optional that holds nothing.
    Empty,
}

impl Datum {
    /// How messages call this kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tensor(_) => "a tensor",
            Self::Sequence(_) => "a sequence",
            Self::Empty => "an empty optional",
        }
    }

    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The tensor, for an operator that takes nothing else as input `index`.
    ///
    /// # Errors
    /// When this is no tensor.
    pub fn into_tensor(self, index: usize) -> Result<Tensor, OpError> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            other => Err(OpError::value(&format!("input {index}"), other.kind(), "a tensor")),
        }
    }
}

impl From<Tensor> for Datum {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
    }
}
