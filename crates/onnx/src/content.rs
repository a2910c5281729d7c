//! Contents of values in files of their own: what ONNX's test data and debuggers write.

use attar_tensor::{Bytes, Tensor};
use prost::Message;

use crate::error::OnnxError;
use crate::messages::{
    OPTIONAL_SEQUENCE, OPTIONAL_TENSOR, OptionalProto, SequenceProto, TensorProto,
};
use crate::tensor::{Place, read_tensor};

/// What an optional holds.
#[derive(Clone, Debug, PartialEq)]
pub enum OptionalContent {
    Tensor(Tensor),
    Sequence(Vec<Tensor>),
}

/// Reads a tensor that is a message of its own.
///
/// # Errors
/// When the bytes are no such message, or the data does not fit its shape.
pub fn tensor_from_bytes(bytes: Bytes) -> Result<Tensor, OnnxError> {
    content(TensorProto::decode(bytes)?)
}

/// Reads a sequence of tensors that is a message of its own.
///
/// # Errors
/// As [`tensor_from_bytes`].
pub fn sequence_from_bytes(bytes: Bytes) -> Result<Vec<Tensor>, OnnxError> {
    sequence(SequenceProto::decode(bytes)?)
}

/// Reads an optional that is a message of its own; `None` when it holds nothing.
///
/// # Errors
/// As [`tensor_from_bytes`]; and when it holds neither a tensor nor a sequence.
pub fn optional_from_bytes(bytes: Bytes) -> Result<Option<OptionalContent>, OnnxError> {
    let proto = OptionalProto::decode(bytes)?;
    let place = "an optional";
    match proto.elem_type.unwrap_or(0) {
        0 => Ok(None),
        OPTIONAL_TENSOR => {
            proto.tensor_value.map(|proto| content(proto).map(OptionalContent::Tensor)).transpose()
        }
        OPTIONAL_SEQUENCE => {
            let value = proto.sequence_value;
            value.map(|proto| sequence(proto).map(OptionalContent::Sequence)).transpose()
        }
        other => Err(OnnxError::unsupported(place, format!("content of type {other}"))),
    }
}

fn sequence(proto: SequenceProto) -> Result<Vec<Tensor>, OnnxError> {
    proto.tensor_values.into_iter().map(content).collect()
}

fn content(mut proto: TensorProto) -> Result<Tensor, OnnxError> {
    let name = proto.name.take().unwrap_or_default();
    read_tensor(proto, Place::Initializer(&name)).map(|stored| stored.tensor)
}
