//! Opening a model.

use std::path::Path;

use attar_graph::{Model, validate, validate_function};
use attar_tensor::{Bytes, map_file};
use prost::Message;

use crate::error::OnnxError;
use crate::external::{DataFiles, resolve};
use crate::messages::ModelProto;
use crate::model::read_model;
use crate::sparse::check_sizes;

/// Opens a model file. Weights, external ones too, stay in the mapped files until they are read.
///
/// # Errors
/// When a file cannot be read, is not ONNX, or holds a graph that is not well formed.
pub fn load(path: &Path) -> Result<Model, OnnxError> {
    let bytes = map_file(path).map_err(|source| OnnxError::io(path, source))?;
    read(bytes, &mut || DataFiles::beside(path).map_err(|source| OnnxError::io(path, source)))
}

/// Reads a model from memory, sharing the bytes. External data is looked for in `folder`.
///
/// # Errors
/// As [`load`]; and when there is external data, but no folder.
pub fn from_bytes(bytes: Bytes, folder: Option<&Path>) -> Result<Model, OnnxError> {
    read(bytes, &mut || match folder {
        Some(folder) => DataFiles::within(folder).map_err(|source| OnnxError::io(folder, source)),
        None => Err(OnnxError::unsupported("a model in memory", "external data without a folder")),
    })
}

fn read(
    bytes: Bytes,
    open: &mut dyn FnMut() -> Result<DataFiles, OnnxError>,
) -> Result<Model, OnnxError> {
    let mut proto = ModelProto::decode(bytes)?;
    resolve(&mut proto, open)?;
    check_sizes(&proto)?;
    let model = read_model(proto)?;
    validate(&model.graph)?;
    for function in &model.functions {
        validate_function(function).map_err(|source| {
            let function = format!("{}.{}", function.domain, function.name);
            OnnxError::Function { function, source }
        })?;
    }
    Ok(model)
}
