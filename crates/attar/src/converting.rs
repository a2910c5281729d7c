//! Writing a model anew: for a newer operator set, with its functions inlined, with its weights
//! in a file of their own.

use std::path::{Path, PathBuf};

use attar_graph::inline_functions;
use attar_onnx::SaveOptions;
use attar_ops::opset::{OpsetError, convert_opset};
use serde::Serialize;

use crate::{Error, load};

/// What to write, and how.
#[derive(Clone, Copy, Debug)]
pub struct ConvertRequest<'a> {
    pub model: &'a Path,
    pub output: &'a Path,
    /// The operator set to convert to; `None` leaves every node as it is.
    pub opset: Option<i64>,
    /// Put the nodes of functions in the place of their calls.
    pub inline: bool,
    /// Initializers of at least this many bytes go into `NAME.onnx.data`.
    pub external_data_min_bytes: Option<usize>,
}

/// What was written.
#[derive(Debug, Serialize)]
pub struct ConvertOutcome {
    pub model: PathBuf,
    pub size_bytes: u64,
    pub opset_before: i64,
    pub opset: i64,
    pub node_count_before: usize,
    pub node_count: usize,
}

/// Reads a model and writes it, converted as asked. What is not converted stays as it is, field
/// by field.
///
/// # Errors
/// A model that cannot be read, or a node that has no counterpart in the operator set.
pub fn convert(request: &ConvertRequest) -> Result<ConvertOutcome, Error> {
    let mut model = load(request.model)?;
    let (opset_before, node_count_before) = (model.opset(), model.graph.nodes.len());
    let fail = |source| Error::Convert { path: request.model.to_path_buf(), source };
    if request.inline {
        inline_functions(&mut model).map_err(|error| fail(OpsetError::Graph(error)))?;
    }
    if let Some(opset) = request.opset {
        convert_opset(&mut model, opset).map_err(fail)?;
    }
    let options = SaveOptions { external_data_min_bytes: request.external_data_min_bytes };
    attar_onnx::save(&model, request.output, &options)
        .map_err(|source| Error::Model { path: request.output.to_path_buf(), source })?;
    Ok(ConvertOutcome {
        model: request.output.to_path_buf(),
        size_bytes: attar_evaluate::model_size_bytes(request.output)?,
        opset_before,
        opset: model.opset(),
        node_count_before,
        node_count: model.graph.nodes.len(),
    })
}
