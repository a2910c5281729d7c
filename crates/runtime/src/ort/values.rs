//! Tensors to ONNX Runtime's values without a copy, and back with one.

use std::borrow::Cow;
use std::fmt::Debug;

use ::ort::session::SessionInputValue;
use ::ort::value::{
    DynValue, PrimitiveTensorElementType, Tensor as OrtTensor, TensorElementType, TensorRef,
    ValueType,
};
use attar_tensor::{Bytes, DType, Element, Tensor, bf16, f16};

use super::ort_error;
use crate::RuntimeError;

/// A feed, borrowed where its bytes are aligned.
pub(super) fn to_ort<'a>(
    name: &str,
    tensor: &'a Tensor,
) -> Result<SessionInputValue<'a>, RuntimeError> {
    match tensor.dtype() {
        DType::F32 => view::<f32>(tensor),
        DType::F64 => view::<f64>(tensor),
        DType::F16 => view::<f16>(tensor),
        DType::BF16 => view::<bf16>(tensor),
        DType::I64 => view::<i64>(tensor),
        DType::I32 => view::<i32>(tensor),
        DType::I16 => view::<i16>(tensor),
        DType::I8 => view::<i8>(tensor),
        DType::U64 => view::<u64>(tensor),
        DType::U32 => view::<u32>(tensor),
        DType::U16 => view::<u16>(tensor),
        DType::U8 => view::<u8>(tensor),
        DType::Bool => {
            let values: Vec<bool> = tensor.values::<u8>().iter().map(|&byte| byte != 0).collect();
            OrtTensor::from_array((tensor.shape(), values)).map(Into::into)
        }
        DType::String => {
            let strings = tensor.strings().iter().map(|string| String::from_utf8(string.to_vec()));
            let strings: Vec<String> = strings.collect::<Result<_, _>>().map_err(|_| {
                let what = format!("text other than UTF-8 for input `{name}` on ONNX Runtime");
                RuntimeError::Unsupported { what }
            })?;
            OrtTensor::from_string_array((tensor.shape(), strings.as_slice())).map(Into::into)
        }
        other => {
            let what = format!("{other} for input `{name}` on ONNX Runtime");
            return Err(RuntimeError::Unsupported { what });
        }
    }
    .map_err(ort_error)
}

fn view<T>(tensor: &Tensor) -> ::ort::Result<SessionInputValue<'_>>
where
    T: Element + PrimitiveTensorElementType + Debug,
{
    Ok(match tensor.values::<T>() {
        Cow::Borrowed(values) => TensorRef::from_array_view((tensor.shape(), values))?.into(),
        Cow::Owned(values) => OrtTensor::from_array((tensor.shape(), values))?.into(),
    })
}

/// A copy of an output.
pub(super) fn from_ort(name: &str, value: &DynValue) -> Result<Tensor, RuntimeError> {
    let unsupported = |found: &dyn std::fmt::Display| {
        let what = format!("{found} for output `{name}` on ONNX Runtime");
        RuntimeError::Unsupported { what }
    };
    let ValueType::Tensor { ty, .. } = value.dtype() else {
        return Err(unsupported(value.dtype()));
    };
    match ty {
        TensorElementType::Float32 => copy::<f32>(value),
        TensorElementType::Float64 => copy::<f64>(value),
        TensorElementType::Float16 => copy::<f16>(value),
        TensorElementType::Bfloat16 => copy::<bf16>(value),
        TensorElementType::Int64 => copy::<i64>(value),
        TensorElementType::Int32 => copy::<i32>(value),
        TensorElementType::Int16 => copy::<i16>(value),
        TensorElementType::Int8 => copy::<i8>(value),
        TensorElementType::Uint64 => copy::<u64>(value),
        TensorElementType::Uint32 => copy::<u32>(value),
        TensorElementType::Uint16 => copy::<u16>(value),
        TensorElementType::Uint8 => copy::<u8>(value),
        TensorElementType::Bool => {
            let extracted = value.try_extract_tensor::<bool>();
            extracted.map(|(shape, values)| Tensor::from_bools(&sizes(shape), values))
        }
        TensorElementType::String => value.try_extract_strings().map(|(shape, strings)| {
            let strings = strings.into_iter().map(Bytes::from).collect();
            Tensor::from_strings(&sizes(shape), strings).expect("as many strings as elements")
        }),
        other => return Err(unsupported(other)),
    }
    .map_err(ort_error)
}

fn copy<T: Element + PrimitiveTensorElementType>(value: &DynValue) -> ::ort::Result<Tensor> {
    let (shape, values) = value.try_extract_tensor::<T>()?;
    Ok(Tensor::new(&sizes(shape), values))
}

fn sizes(shape: &[i64]) -> Vec<usize> {
    let size = |&dim: &i64| usize::try_from(dim).expect("a computed tensor has no negative size");
    shape.iter().map(size).collect()
}
