//! Stored tensors ⇄ `TensorProto`, in whichever of its fields the data stands.

use std::fmt;

use attar_graph::{StoredTensor, TensorForm};
use attar_tensor::{Bytes, DType, Tensor, TensorError, element_count};
use prost::Message;

use crate::error::OnnxError;
use crate::fields::keep_rest;
use crate::messages::TensorProto;
use crate::types::{code_of, dtype_from_code};

/// Where a tensor stands in the model, as error messages say it.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Initializer(&'a str),
    Attribute { node: &'a str, attribute: &'a str },
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Initializer(name) => write!(f, "`{name}` (initializer)"),
            Self::Attribute { node, attribute } => {
                write!(f, "attribute `{attribute}` of node `{node}`")
            }
        }
    }
}

/// Which typed field holds the elements of a type, when they are not raw bytes.
#[derive(Clone, Copy, PartialEq)]
enum TypedField {
    Float,
    Double,
    Int32,
    Int64,
    Uint64,
    Strings,
}

fn typed_field(dtype: DType) -> TypedField {
    match dtype {
        DType::F32 | DType::Complex64 => TypedField::Float,
        DType::F64 | DType::Complex128 => TypedField::Double,
        DType::I64 => TypedField::Int64,
        DType::U64 | DType::U32 => TypedField::Uint64,
        DType::String => TypedField::Strings,
        _ => TypedField::Int32,
    }
}

/// Reads a tensor. Its name stays in `extra`; external data has been resolved before.
pub(crate) fn read_tensor(
    mut proto: TensorProto,
    place: Place<'_>,
) -> Result<StoredTensor, OnnxError> {
    let code = proto.data_type.take().unwrap_or(0);
    let dtype = dtype_from_code(code.into())
        .ok_or_else(|| OnnxError::unsupported(place, format!("element type {code}")))?;
    let dims = std::mem::take(&mut proto.dims);
    let shape: Vec<usize> = dims
        .iter()
        .map(|&dim| usize::try_from(dim).ok())
        .collect::<Option<_>>()
        .ok_or_else(|| OnnxError::NegativeSize { place: place.to_string(), shape: dims })?;
    let in_place = |source| OnnxError::Tensor { place: place.to_string(), source };
    // A zero hides sizes whose product overflows, and later code multiplies them in any order.
    let sizes: Vec<usize> = shape.iter().copied().filter(|&size| size != 0).collect();
    if element_count(&sizes).and_then(|count| dtype.size_bytes(count)).is_none() {
        return Err(in_place(TensorError::TooLarge { shape }));
    }
    if proto.segment.is_some() {
        return Err(OnnxError::unsupported(place, "a tensor in segments"));
    }
    let raw = proto.raw_data.take();
    // Bytes of small elements are written with a sign by some, and come back with it.
    let is_signed = dtype.bits() < 6 && proto.int32_data.iter().any(|&value| value < 0);
    let signed = if is_signed { proto.int32_data.clone() } else { Vec::new() };
    let form = if raw.is_none() { TensorForm::Typed } else { TensorForm::Raw };
    let tensor = match raw {
        Some(_) if dtype == DType::String => {
            return Err(OnnxError::unsupported(place, "a string tensor in raw bytes"));
        }
        Some(bytes) => Tensor::from_bytes(dtype, &shape, bytes).map_err(in_place)?,
        None if dtype == DType::String => {
            Tensor::from_strings(&shape, std::mem::take(&mut proto.string_data))
                .map_err(in_place)?
        }
        None => {
            let found = proto.int32_data.len();
            let bytes = take_typed(&mut proto, dtype, place)?;
            let tensor = Tensor::from_bytes(dtype, &shape, bytes).map_err(in_place)?;
            // Three and four of them fill as many bytes.
            let expected = tensor.element_count();
            if dtype.bits() == 6 && found != expected {
                return Err(in_place(TensorError::Size { dtype, shape, expected, found }));
            }
            tensor
        }
    };
    if has_data(&proto) {
        return Err(OnnxError::unsupported(place, "data in more than one field"));
    }
    proto.int32_data = signed;
    Ok(StoredTensor { tensor, form, extra: keep_rest(&proto) })
}

fn has_data(proto: &TensorProto) -> bool {
    !(proto.float_data.is_empty()
        && proto.double_data.is_empty()
        && proto.int32_data.is_empty()
        && proto.int64_data.is_empty()
        && proto.uint64_data.is_empty()
        && proto.string_data.is_empty())
}

/// Takes the typed field of a type as the bytes that raw data would have.
fn take_typed(proto: &mut TensorProto, dtype: DType, place: Place<'_>) -> Result<Bytes, OnnxError> {
    let range = |value: i128| OnnxError::Range { place: place.to_string(), dtype, value };
    Ok(match typed_field(dtype) {
        TypedField::Float => copy_bytes(&std::mem::take(&mut proto.float_data)),
        TypedField::Double => copy_bytes(&std::mem::take(&mut proto.double_data)),
        TypedField::Int64 => copy_bytes(&std::mem::take(&mut proto.int64_data)),
        TypedField::Uint64 if dtype == DType::U64 => {
            copy_bytes(&std::mem::take(&mut proto.uint64_data))
        }
        TypedField::Uint64 => {
            let narrow = |value| u32::try_from(value).map_err(|_| range(i128::from(value)));
            let values = std::mem::take(&mut proto.uint64_data);
            copy_bytes(&values.into_iter().map(narrow).collect::<Result<Vec<u32>, _>>()?)
        }
        TypedField::Int32 => {
            let values = std::mem::take(&mut proto.int32_data);
            bytes_from_int32(dtype, &values).map_err(|value| range(value.into()))?
        }
        TypedField::Strings => unreachable!("strings are not bytes"),
    })
}

fn copy_bytes<T: bytemuck::NoUninit>(values: &[T]) -> Bytes {
    Bytes::copy_from_slice(bytemuck::cast_slice(values))
}

/// The elements of `int32_data`: one each, except that those of 4 and 2 bits come a byte each. The
/// error is the first value that does not fit.
fn bytes_from_int32(dtype: DType, values: &[i32]) -> Result<Bytes, i32> {
    fn narrow<T: TryFrom<i32> + bytemuck::NoUninit>(values: &[i32]) -> Result<Bytes, i32> {
        let narrow: Result<Vec<T>, i32> =
            values.iter().map(|&value| T::try_from(value).map_err(|_| value)).collect();
        Ok(copy_bytes(&narrow?))
    }
    match (dtype, dtype.bits()) {
        (DType::I32, _) => Ok(copy_bytes(values)),
        (DType::I16, _) => narrow::<i16>(values),
        (DType::I8, _) => narrow::<i8>(values),
        (DType::Bool, _) => match values.iter().find(|value| !matches!(value, 0 | 1)) {
            Some(&value) => Err(value),
            None => narrow::<u8>(values),
        },
        (_, 16) => narrow::<u16>(values),
        (_, 6) => pack_6_bits(values),
        // Packed nibbles: exporters of some years write the byte with its sign.
        (_, 2 | 4) => {
            let byte = |&value: &i32| {
                let signed = || i8::try_from(value).map(i8::cast_unsigned).map_err(|_| value);
                u8::try_from(value).or_else(|_| signed())
            };
            values.iter().map(byte).collect::<Result<Vec<u8>, i32>>().map(Bytes::from)
        }
        _ => narrow::<u8>(values),
    }
}

/// Four elements of 6 bits in three bytes, low bits first.
fn pack_6_bits(values: &[i32]) -> Result<Bytes, i32> {
    let mut bytes = vec![0_u8; (values.len() * 6).div_ceil(8)];
    for (index, &value) in values.iter().enumerate() {
        let bits = u8::try_from(value).ok().filter(|&bits| bits < 64).ok_or(value)?;
        let (byte, shift) = (index * 6 / 8, index * 6 % 8);
        bytes[byte] |= bits << shift;
        if shift > 2 {
            bytes[byte + 1] |= bits >> (8 - shift);
        }
    }
    Ok(bytes.into())
}

fn unpack_6_bits(bytes: &[u8], count: usize) -> Vec<i32> {
    let element = |index: usize| {
        let (byte, shift) = (index * 6 / 8, index * 6 % 8);
        let high = bytes.get(byte + 1).copied().unwrap_or(0);
        i32::from((u16::from_le_bytes([bytes[byte], high]) >> shift) & 63)
    };
    (0..count).map(element).collect()
}

/// Writes a tensor as it was read: typed, or as raw bytes without a copy.
pub(crate) fn write_tensor(stored: &StoredTensor) -> Result<TensorProto, OnnxError> {
    // The rest of a sparse tensor is a message of another kind, and says nothing of a dense one.
    let extra = match stored.form {
        TensorForm::Sparse => Bytes::new(),
        TensorForm::Raw | TensorForm::Typed => stored.extra.clone(),
    };
    let mut proto = TensorProto::decode(extra)?;
    let tensor = &stored.tensor;
    proto.data_type = Some(code_of(tensor.dtype()));
    proto.dims = tensor.shape().iter().map(|&size| dim(size)).collect::<Result<_, _>>()?;
    let bytes = tensor.bytes();
    let signed = std::mem::take(&mut proto.int32_data);
    let is_typed = stored.form == TensorForm::Typed;
    match (typed_field(tensor.dtype()), is_typed) {
        (TypedField::Strings, _) => proto.string_data = tensor.strings().to_vec(),
        (_, false) => proto.raw_data = Some(tensor.shared_bytes()),
        (TypedField::Float, true) => proto.float_data = bytemuck::pod_collect_to_vec(bytes),
        (TypedField::Double, true) => proto.double_data = bytemuck::pod_collect_to_vec(bytes),
        (TypedField::Int64, true) => proto.int64_data = bytemuck::pod_collect_to_vec(bytes),
        (TypedField::Uint64, true) if tensor.dtype() == DType::U64 => {
            proto.uint64_data = bytemuck::pod_collect_to_vec(bytes);
        }
        (TypedField::Uint64, true) => {
            proto.uint64_data = tensor.values::<u32>().iter().map(|&x| x.into()).collect();
        }
        (TypedField::Int32, true) => {
            let is_same = bytes_from_int32(tensor.dtype(), &signed).is_ok_and(|old| old == bytes);
            let is_kept = is_same && !signed.is_empty();
            proto.int32_data = if is_kept { signed } else { int32_from_bytes(tensor) };
        }
    }
    Ok(proto)
}

fn dim(size: usize) -> Result<i64, OnnxError> {
    // Only an empty tensor can have such a size: no other fits into memory.
    i64::try_from(size).map_err(|_| OnnxError::Tensor {
        place: "a tensor to write".into(),
        source: TensorError::TooLarge { shape: vec![size] },
    })
}

fn int32_from_bytes(tensor: &Tensor) -> Vec<i32> {
    fn widen<T: Into<i32> + bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        bytes: &[u8],
    ) -> Vec<i32> {
        bytemuck::pod_collect_to_vec::<u8, T>(bytes).into_iter().map(Into::into).collect()
    }
    let (dtype, bytes) = (tensor.dtype(), tensor.bytes());
    match (dtype, dtype.bits()) {
        (DType::I32, _) => widen::<i32>(bytes),
        (DType::I16, _) => widen::<i16>(bytes),
        (DType::I8, _) => widen::<i8>(bytes),
        (_, 16) => widen::<u16>(bytes),
        (_, 6) => unpack_6_bits(bytes, tensor.element_count()),
        _ => widen::<u8>(bytes),
    }
}

/// Bytes that the data of a tensor message takes outside it; `None` for strings, unknown types,
/// and shapes that no memory holds.
pub(crate) fn data_size_bytes(proto: &TensorProto) -> Option<usize> {
    let dtype = dtype_from_code(proto.data_type?.into()).filter(|&dtype| dtype != DType::String)?;
    let shape: Vec<usize> =
        proto.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
    dtype.size_bytes(element_count(&shape)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Segment, StringStringEntryProto};

    const W: Place<'_> = Place::Initializer("w");

    fn proto(code: i32, dims: &[i64]) -> TensorProto {
        TensorProto { dims: dims.to_vec(), data_type: Some(code), ..TensorProto::default() }
    }

    fn round_trip(original: &TensorProto) -> Tensor {
        let stored = read_tensor(original.clone(), W).unwrap();
        assert_eq!(write_tensor(&stored).unwrap(), *original);
        stored.tensor
    }

    #[test]
    fn raw_data_of_every_type_comes_back() {
        for code in (1..=28).filter(|&code| code != 8) {
            let size = dtype_from_code(code.into()).unwrap().size_bytes(5).unwrap();
            let raw: Vec<u8> = (1..=u8::try_from(size).unwrap()).collect();
            let original = TensorProto { raw_data: Some(raw.into()), ..proto(code, &[1, 5]) };
            round_trip(&original);
        }
    }

    #[test]
    fn typed_data_of_every_type_comes_back() {
        let floats = TensorProto { float_data: vec![1.5, -2.0], ..proto(1, &[2]) };
        assert_eq!(round_trip(&floats).values::<f32>().as_ref(), [1.5, -2.0]);
        round_trip(&TensorProto { float_data: vec![1.5, -2.0], ..proto(14, &[1]) });
        let doubles = TensorProto { double_data: vec![0.1], ..proto(11, &[]) };
        assert_eq!(round_trip(&doubles).values::<f64>().as_ref(), [0.1]);
        round_trip(&TensorProto { double_data: vec![0.1, 0.2], ..proto(15, &[1]) });
        let longs = TensorProto { int64_data: vec![i64::MIN, 7], ..proto(7, &[2]) };
        assert_eq!(round_trip(&longs).values::<i64>().as_ref(), [i64::MIN, 7]);
        let unsigned = TensorProto { uint64_data: vec![u64::MAX], ..proto(13, &[1]) };
        assert_eq!(round_trip(&unsigned).values::<u64>().as_ref(), [u64::MAX]);
        let unsigned = TensorProto { uint64_data: vec![u32::MAX.into()], ..proto(12, &[1]) };
        assert_eq!(round_trip(&unsigned).values::<u32>().as_ref(), [u32::MAX]);
        let strings = vec![Bytes::from_static(b"a"), Bytes::from_static(&[0xff])];
        round_trip(&TensorProto { string_data: strings, ..proto(8, &[2]) });
    }

    #[test]
    fn int32_data_holds_every_small_kind_of_element() {
        let bytes = Tensor::new(&[3], &[-128_i8, 0, 127]);
        let original = TensorProto { int32_data: vec![-128, 0, 127], ..proto(3, &[3]) };
        assert_eq!(round_trip(&original), bytes);
        for (code, values) in [
            (2, vec![0, 255]),
            (4, vec![0, 65535]),
            (5, vec![-32768, 32767]),
            (6, vec![i32::MIN, i32::MAX]),
            (9, vec![0, 1]),
            (10, vec![0x3c00, 0xfc00]),
            (16, vec![0x3f80, 0xff80]),
            (17, vec![0, 255]),
            (24, vec![0, 255]),
        ] {
            round_trip(&TensorProto { int32_data: values, ..proto(code, &[2]) });
        }
        // Two elements a byte, four elements a byte; the last byte may be partly used.
        for (code, count) in [(21, 3), (22, 4), (23, 3), (25, 7), (26, 8)] {
            round_trip(&TensorProto { int32_data: vec![0x21, 0xf3], ..proto(code, &[count]) });
        }
        for code in [21, 22, 25] {
            let signed = TensorProto { int32_data: vec![-1, 0x21], ..proto(code, &[4]) };
            let signed = if code == 25 { TensorProto { dims: vec![8], ..signed } } else { signed };
            assert_eq!(round_trip(&signed).bytes(), [0xff, 0x21]);
        }
        // One element an entry, packed in memory: 1 | 63 << 6 | 32 << 12 | 5 << 18, then 7.
        for code in [27, 28] {
            let values = vec![1, 63, 32, 5, 7];
            let found = round_trip(&TensorProto { int32_data: values, ..proto(code, &[5]) });
            assert_eq!(found.bytes(), [0xc1, 0x0f, 0x16, 0x07]);
            for (values, dims) in [(vec![64], &[1]), (vec![1, 2, 3], &[4])] {
                let original = TensorProto { int32_data: values, ..proto(code, dims) };
                assert!(read_tensor(original, W).is_err());
            }
        }
    }

    #[test]
    fn values_out_of_range_are_not_cut_off() {
        for (code, value) in [(2, 256), (3, -129), (9, 2), (10, -1), (21, -129)] {
            let original = TensorProto { int32_data: vec![value], ..proto(code, &[1]) };
            let error = read_tensor(original, W).unwrap_err();
            assert!(
                matches!(error, OnnxError::Range { value: found, .. } if found == value.into())
            );
        }
        let original = TensorProto { uint64_data: vec![1 << 32], ..proto(12, &[1]) };
        assert!(read_tensor(original, W).is_err());
    }

    #[test]
    fn names_and_properties_stay_with_the_tensor() {
        let entry = StringStringEntryProto {
            key: Some("k".into()),
            value: Some("v".into()),
            ..StringStringEntryProto::default()
        };
        round_trip(&TensorProto {
            name: Some("w".into()),
            doc_string: Some(String::new()),
            data_location: Some(0),
            metadata_props: vec![entry],
            ..proto(1, &[0])
        });
    }

    #[test]
    fn wrong_sizes_are_named() {
        let raw_data = Some(Bytes::from_static(&[0; 12]));
        let original = TensorProto { raw_data, ..proto(1, &[384, 1536]) };
        assert_eq!(
            read_tensor(original, W).unwrap_err().to_string(),
            "`w` (initializer): shape [384, 1536] of f32 needs 2359296 bytes, found 12"
        );
        assert_eq!(
            read_tensor(proto(1, &[2, -1]), W).unwrap_err().to_string(),
            "`w` (initializer): shape [2, -1] has a negative size"
        );
        let place = Place::Attribute { node: "c", attribute: "value" };
        assert_eq!(
            read_tensor(proto(29, &[1]), place).unwrap_err().to_string(),
            "attribute `value` of node `c`: element type 29 is not supported"
        );
        assert!(read_tensor(proto(1, &[i64::MAX, i64::MAX]), W).is_err());
    }

    #[test]
    fn data_in_two_fields_or_in_segments_is_refused() {
        let raw_data = Some(Bytes::from_static(&[0; 4]));
        let twice = TensorProto { raw_data, float_data: vec![1.0], ..proto(1, &[1]) };
        assert!(read_tensor(twice, W).is_err());
        let segment = Some(Segment { begin: Some(0), end: Some(1), ..Segment::default() });
        assert!(read_tensor(TensorProto { segment, ..proto(1, &[0]) }, W).is_err());
        let wrong = TensorProto { int64_data: vec![1], ..proto(1, &[1]) };
        assert!(read_tensor(wrong, W).is_err());
    }
}
