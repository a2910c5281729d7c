//! Sparse initializers: dense in the graph, written as they were read while they are unchanged.

use attar_graph::{StoredTensor, TensorForm};
use attar_tensor::{Buffer, Bytes, DType, Tensor, element_count};
use prost::Message;

use crate::error::OnnxError;
use crate::messages::{GraphProto, ModelProto, SparseTensorProto, TensorProto};
use crate::tensor::{Place, read_tensor, write_tensor};
use crate::types::dtype_from_code;
use crate::walk::for_each_graph;

/// Bytes that the sparse initializers of a model may take once they are dense, whatever the file's
/// size.
const DENSE_BYTES_ALLOWED: usize = 256 << 20;
/// And beyond that, for each byte that the file holds of them.
const DENSE_BYTES_PER_STORED: usize = 64;

/// Bytes of a string in memory beside its text.
const STRING_BYTES: usize = 32;

/// The name of a sparse initializer is that of its values.
pub(crate) fn name_of(proto: &SparseTensorProto) -> &str {
    proto.values.as_ref().and_then(|values| values.name.as_deref()).unwrap_or_default()
}

/// Refuses models whose sparse initializers are much larger than their file: a few bytes can
/// declare a shape that fills any memory.
pub(crate) fn check_sizes(model: &ModelProto) -> Result<(), OnnxError> {
    let (mut dense, mut stored) = (0_usize, 0_usize);
    for_each_graph(model, &mut |graph: &GraphProto| {
        for sparse in &graph.sparse_initializer {
            let place = Place::Initializer(name_of(sparse));
            dense = dense.saturating_add(dense_size_bytes(sparse));
            stored = stored.saturating_add(sparse.encoded_len());
            let allowed = stored.saturating_mul(DENSE_BYTES_PER_STORED);
            if dense > allowed.saturating_add(DENSE_BYTES_ALLOWED) {
                let what = format!(
                    "a sparse tensor of shape {:?} in {} bytes",
                    sparse.dims,
                    sparse.encoded_len()
                );
                return Err(OnnxError::unsupported(place, what));
            }
        }
        Ok(())
    })
}

/// Without what is refused later, by name: negative sizes and unknown element types.
fn dense_size_bytes(proto: &SparseTensorProto) -> usize {
    let code = proto.values.as_ref().and_then(|values| values.data_type);
    let dtype = code.and_then(|code| dtype_from_code(code.into()));
    let sizes: Option<Vec<usize>> =
        proto.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let (Some(dtype), Some(sizes)) = (dtype, sizes) else { return 0 };
    let count = element_count(&sizes);
    let size_bytes = match dtype {
        DType::String => count.and_then(|count| count.checked_mul(STRING_BYTES)),
        dtype => count.and_then(|count| dtype.size_bytes(count)),
    };
    size_bytes.unwrap_or(usize::MAX)
}

/// Reads a sparse initializer. External data has been resolved and sizes have been checked before.
pub(crate) fn read_sparse(
    proto: &SparseTensorProto,
    place: Place<'_>,
) -> Result<StoredTensor, OnnxError> {
    let tensor = densified(proto, place)?;
    Ok(StoredTensor { tensor, form: TensorForm::Sparse, extra: proto.encode_to_vec().into() })
}

/// The message that an unchanged sparse initializer was read from; `None` for any other tensor.
pub(crate) fn unchanged(
    name: &str,
    stored: &StoredTensor,
) -> Result<Option<SparseTensorProto>, OnnxError> {
    if stored.form != TensorForm::Sparse {
        return Ok(None);
    }
    let mut proto = SparseTensorProto::decode(stored.extra.clone())?;
    if densified(&proto, Place::Initializer(name))? != stored.tensor {
        return Ok(None);
    }
    if let Some(values) = &mut proto.values {
        values.name = Some(name.into());
    }
    Ok(Some(proto))
}

fn densified(proto: &SparseTensorProto, place: Place<'_>) -> Result<Tensor, OnnxError> {
    let part = |part: &Option<TensorProto>, what: &str| {
        let missing = || OnnxError::unsupported(place, format!("a sparse tensor without {what}"));
        Ok::<_, OnnxError>(read_tensor(part.clone().ok_or_else(missing)?, place)?.tensor)
    };
    let (values, indices) = (part(&proto.values, "values")?, part(&proto.indices, "indices")?);
    let negative =
        || OnnxError::NegativeSize { place: place.to_string(), shape: proto.dims.clone() };
    let shape: Vec<usize> = proto
        .dims
        .iter()
        .map(|&dim| usize::try_from(dim).ok())
        .collect::<Option<_>>()
        .ok_or_else(negative)?;
    let positions = positions(&indices, values.shape(), &shape)
        .map_err(|what| OnnxError::unsupported(place, format!("a sparse tensor {what}")))?;
    scattered(&values, &positions, &shape).ok_or_else(|| {
        OnnxError::unsupported(place, format!("a sparse tensor of {}", values.dtype()))
    })
}

/// Where each value stands in the dense tensor, in row-major order.
fn positions(indices: &Tensor, values: &[usize], shape: &[usize]) -> Result<Vec<usize>, String> {
    if indices.dtype() != DType::I64 {
        return Err(format!("with indices of {}", indices.dtype()));
    }
    let &[count] = values else { return Err(format!("with values of shape {values:?}")) };
    let (all, size) = (indices.values::<i64>(), element_count(shape).unwrap_or(0));
    let positions: Option<Vec<usize>> = match *indices.shape() {
        [found] if found == count => {
            all.iter().map(|&at| usize::try_from(at).ok().filter(|&at| at < size)).collect()
        }
        [found, rank] if found == count && rank == shape.len() && rank > 0 => {
            all.chunks_exact(rank).map(|index| linear(index, shape)).collect()
        }
        _ => return Err(format!("with {count} values and indices of {:?}", indices.shape())),
    };
    let positions = positions.ok_or("with an index outside of its shape")?;
    if positions.is_sorted_by(|a, b| a < b) {
        Ok(positions)
    } else {
        Err("with indices that do not ascend".into())
    }
}

fn linear(index: &[i64], shape: &[usize]) -> Option<usize> {
    index.iter().zip(shape).try_fold(0, |position, (&at, &size)| {
        let at = usize::try_from(at).ok().filter(|&at| at < size)?;
        Some(position * size + at)
    })
}

/// Zeros, or empty strings, but for `values` at `positions`; `None` for elements that share bytes.
fn scattered(values: &Tensor, positions: &[usize], shape: &[usize]) -> Option<Tensor> {
    let count = element_count(shape)?;
    if values.dtype() == DType::String {
        let mut strings = vec![Bytes::new(); count];
        for (&at, string) in positions.iter().zip(values.strings()) {
            strings[at] = string.clone();
        }
        return Tensor::from_strings(shape, strings).ok();
    }
    let bits = values.dtype().bits();
    if !bits.is_multiple_of(8) {
        return None;
    }
    let size = bits / 8;
    let mut buffer = Buffer::zeroed(count.checked_mul(size)?);
    for (&at, value) in positions.iter().zip(values.bytes().chunks_exact(size)) {
        buffer.as_bytes_mut()[at * size..(at + 1) * size].copy_from_slice(value);
    }
    Some(Tensor::from_buffer(values.dtype(), shape, buffer))
}

/// A tensor that was sparse and has been changed, with what its values said beside their data.
pub(crate) fn write_changed(stored: &StoredTensor) -> Result<TensorProto, OnnxError> {
    let dense = write_tensor(stored)?;
    let values = SparseTensorProto::decode(stored.extra.clone())?.values.unwrap_or_default();
    let (doc_string, metadata_props) = (values.doc_string, values.metadata_props);
    Ok(TensorProto { doc_string, metadata_props, ..dense })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::OperatorSetIdProto;
    use crate::{from_bytes, to_bytes};

    fn tensor(name: &str, code: i32, dims: &[i64], raw: &[u8]) -> TensorProto {
        TensorProto {
            name: Some(name.into()).filter(|name: &String| !name.is_empty()),
            dims: dims.to_vec(),
            data_type: Some(code),
            raw_data: Some(Bytes::copy_from_slice(raw)),
            ..TensorProto::default()
        }
    }

    fn indices(dims: &[i64], values: &[i64]) -> TensorProto {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensor("", 7, dims, &bytes)
    }

    fn sparse(code: i32, raw: &[u8], indices: TensorProto, dims: &[i64]) -> SparseTensorProto {
        let bits = dtype_from_code(code.into()).unwrap().bits();
        let count = i64::try_from(raw.len() * 8 / bits).unwrap();
        SparseTensorProto {
            values: Some(tensor("w", code, &[count], raw)),
            indices: Some(indices),
            dims: dims.to_vec(),
            ..SparseTensorProto::default()
        }
    }

    fn model(sparse: Vec<SparseTensorProto>) -> ModelProto {
        let graph = GraphProto { sparse_initializer: sparse, ..GraphProto::default() };
        let opset = OperatorSetIdProto { version: Some(20), ..OperatorSetIdProto::default() };
        let (graph, opset_import) = (Some(graph), vec![opset]);
        ModelProto { graph, opset_import, ..ModelProto::default() }
    }

    fn read(sparse: SparseTensorProto) -> Result<attar_graph::Model, String> {
        let bytes = model(vec![sparse]).encode_to_vec();
        from_bytes(bytes.into(), None).map_err(|error| error.to_string())
    }

    #[test]
    fn elements_stand_where_their_indices_say_and_the_file_comes_back() {
        let linear = sparse(2, &[5, 7], indices(&[2], &[1, 5]), &[2, 3]);
        let by_axis = sparse(2, &[5, 7], indices(&[2, 2], &[0, 1, 1, 2]), &[2, 3]);
        for proto in [linear, by_axis] {
            let read = read(proto.clone()).unwrap();
            assert_eq!(read.graph.constant("w").unwrap().slice::<u8>(), [0, 5, 0, 0, 0, 7]);
            let written = ModelProto::decode(to_bytes(&read).unwrap().as_slice()).unwrap();
            assert_eq!(written, model(vec![proto]));
        }
    }

    #[test]
    fn strings_and_empty_tensors_can_be_sparse() {
        let mut proto = sparse(2, &[], indices(&[1], &[2]), &[4]);
        let string_data = vec![Bytes::from_static(b"x")];
        let values = TensorProto { string_data, raw_data: None, ..tensor("w", 8, &[1], &[]) };
        proto.values = Some(values);
        let read_back = read(proto).unwrap();
        assert_eq!(read_back.graph.constant("w").unwrap().strings(), ["", "", "x", ""]);
        let empty = read(sparse(1, &[], indices(&[0], &[]), &[0, 9])).unwrap();
        assert_eq!(empty.graph.constant("w").unwrap().shape(), [0, 9]);
    }

    #[test]
    fn a_changed_sparse_tensor_is_written_dense() {
        let mut changed = read(sparse(2, &[5, 7], indices(&[2], &[1, 5]), &[2, 3])).unwrap();
        changed.graph.initializers["w"].tensor = Tensor::new(&[2], &[1_u8, 2]);
        let written = ModelProto::decode(to_bytes(&changed).unwrap().as_slice()).unwrap();
        let graph = written.graph.unwrap();
        assert!(graph.sparse_initializer.is_empty());
        assert_eq!(graph.initializer, [tensor("w", 2, &[2], &[1, 2])]);
    }

    #[test]
    fn a_shape_that_fills_memory_is_refused_before_it_is_made() {
        let bomb = || sparse(1, &[0; 4], indices(&[1], &[0]), &[1 << 20, 1 << 20]);
        let error = read(bomb()).unwrap_err();
        assert_eq!(
            error,
            "`w` (initializer): a sparse tensor of shape [1048576, 1048576] in 39 bytes is not \
             supported"
        );
        let overflow = sparse(1, &[0; 4], indices(&[1], &[0]), &[i64::MAX, i64::MAX]);
        assert!(read(overflow).unwrap_err().contains("is not supported"));
        // None alone is too large, all together are.
        let many = vec![sparse(1, &[0; 4], indices(&[1], &[0]), &[1 << 24]); 50];
        let error = from_bytes(model(many).encode_to_vec().into(), None).unwrap_err();
        assert!(error.to_string().contains("shape [16777216]"), "{error}");
    }

    #[test]
    fn indices_that_lie_are_named() {
        for (proto, message) in [
            (sparse(2, &[5], indices(&[1], &[6]), &[2, 3]), "with an index outside of its shape"),
            (sparse(2, &[5], indices(&[1], &[-1]), &[2, 3]), "with an index outside of its shape"),
            (sparse(2, &[5], indices(&[1, 2], &[0, 3]), &[2, 3]), "with an index outside of its"),
            (sparse(2, &[5, 6], indices(&[2], &[1, 1]), &[9]), "with indices that do not ascend"),
            (sparse(2, &[5, 6], indices(&[1], &[1]), &[9]), "with 2 values and indices of [1]"),
            (sparse(2, &[5], tensor("", 6, &[1], &[0; 4]), &[9]), "with indices of i32"),
            (sparse(22, &[5], indices(&[2], &[0, 1]), &[9]), "of i4"),
            (sparse(2, &[5], indices(&[1], &[0]), &[-1]), "has a negative size"),
            (
                SparseTensorProto { values: None, ..sparse(2, &[], indices(&[0], &[]), &[]) },
                "no name",
            ),
        ] {
            let error = read(proto).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
