//! Element types, value types and dimensions as ONNX writes them.

use attar_graph::{Dim, ValueType, parse_dim};
use attar_tensor::DType;

use crate::messages::{
    DimValue, DimensionProto, ElementTypeProto, MapTypeProto, OpaqueTypeProto, TensorShapeProto,
    TensorTypeProto, TypeProto, TypeValue,
};

/// `TensorProto.DataType` of each element type.
const DTYPE_CODES: [(DType, i32); 28] = [
    (DType::F32, 1),
    (DType::U8, 2),
    (DType::I8, 3),
    (DType::U16, 4),
    (DType::I16, 5),
    (DType::I32, 6),
    (DType::I64, 7),
    (DType::String, 8),
    (DType::Bool, 9),
    (DType::F16, 10),
    (DType::F64, 11),
    (DType::U32, 12),
    (DType::U64, 13),
    (DType::Complex64, 14),
    (DType::Complex128, 15),
    (DType::BF16, 16),
    (DType::F8E4M3FN, 17),
    (DType::F8E4M3FNUZ, 18),
    (DType::F8E5M2, 19),
    (DType::F8E5M2FNUZ, 20),
    (DType::U4, 21),
    (DType::I4, 22),
    (DType::F4E2M1, 23),
    (DType::F8E8M0, 24),
    (DType::U2, 25),
    (DType::I2, 26),
    (DType::F6E2M3, 27),
    (DType::F6E3M2, 28),
];

/// The element type with this number in ONNX (`TensorProto.DataType`; the `to` of a `Cast`).
pub fn dtype_from_code(code: i64) -> Option<DType> {
    DTYPE_CODES.iter().find(|entry| i64::from(entry.1) == code).map(|entry| entry.0)
}

/// The number of an element type in ONNX.
pub fn dtype_code(dtype: DType) -> i64 {
    i64::from(code_of(dtype))
}

pub(crate) fn code_of(dtype: DType) -> i32 {
    let entry = DTYPE_CODES.iter().find(|entry| entry.0 == dtype);
    entry.expect("every element type has a code").1
}

pub(crate) fn read_type(proto: &TypeProto) -> ValueType {
    let inner = |element: &Option<Box<TypeProto>>| element.as_deref().map(read_type).map(Box::new);
    match &proto.value {
        None => ValueType::Unspecified,
        Some(TypeValue::Tensor(tensor)) => {
            let (dtype, shape) = read_tensor_type(tensor);
            ValueType::Tensor { dtype, shape }
        }
        Some(TypeValue::SparseTensor(tensor)) => {
            let (dtype, shape) = read_tensor_type(tensor);
            ValueType::SparseTensor { dtype, shape }
        }
        Some(TypeValue::Sequence(sequence)) => ValueType::Sequence(inner(&sequence.elem_type)),
        Some(TypeValue::Optional(optional)) => ValueType::Optional(inner(&optional.elem_type)),
        Some(TypeValue::Map(map)) => ValueType::Map {
            key: map.key_type.and_then(|code| dtype_from_code(code.into())),
            value: inner(&map.value_type),
        },
        Some(TypeValue::Opaque(opaque)) => ValueType::Opaque {
            domain: opaque.domain.clone().unwrap_or_default(),
            name: opaque.name.clone().unwrap_or_default(),
        },
    }
}

fn read_tensor_type(tensor: &TensorTypeProto) -> (Option<DType>, Option<Vec<Dim>>) {
    let dtype = tensor.elem_type.and_then(|code| dtype_from_code(code.into()));
    let dims = tensor.shape.as_ref().map(|shape| shape.dim.iter().map(read_dim).collect());
    (dtype, dims)
}

fn read_dim(proto: &DimensionProto) -> Dim {
    match &proto.value {
        // Some exporters write -1 for a size that is not known.
        Some(DimValue::Value(size)) if *size < 0 => Dim::Unknown,
        Some(DimValue::Value(size)) => Dim::Known(*size),
        Some(DimValue::Param(name)) => parse_dim(name),
        None => Dim::Unknown,
    }
}

pub(crate) fn write_type(value_type: &ValueType) -> TypeProto {
    let inner = |element: &Option<Box<ValueType>>| element.as_deref().map(write_type).map(Box::new);
    let value = match value_type {
        ValueType::Unspecified => None,
        ValueType::Tensor { dtype, shape } => {
            Some(TypeValue::Tensor(write_tensor_type(*dtype, shape.as_deref())))
        }
        ValueType::SparseTensor { dtype, shape } => {
            Some(TypeValue::SparseTensor(write_tensor_type(*dtype, shape.as_deref())))
        }
        ValueType::Sequence(element) => Some(TypeValue::Sequence(ElementTypeProto {
            elem_type: inner(element),
            ..ElementTypeProto::default()
        })),
        ValueType::Optional(element) => Some(TypeValue::Optional(ElementTypeProto {
            elem_type: inner(element),
            ..ElementTypeProto::default()
        })),
        ValueType::Map { key, value } => {
            let key_type = key.map(code_of);
            Some(TypeValue::Map(MapTypeProto {
                key_type,
                value_type: inner(value),
                ..MapTypeProto::default()
            }))
        }
        ValueType::Opaque { domain, name } => {
            let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
            Some(TypeValue::Opaque(OpaqueTypeProto {
                domain: text(domain),
                name: text(name),
                ..OpaqueTypeProto::default()
            }))
        }
    };
    TypeProto { value, denotation: None, ..TypeProto::default() }
}

fn write_tensor_type(dtype: Option<DType>, shape: Option<&[Dim]>) -> TensorTypeProto {
    let shape = shape.map(|dims| TensorShapeProto {
        dim: dims.iter().map(write_dim).collect(),
        ..TensorShapeProto::default()
    });
    TensorTypeProto { elem_type: dtype.map(code_of), shape, ..TensorTypeProto::default() }
}

fn write_dim(dim: &Dim) -> DimensionProto {
    let value = match dim {
        Dim::Known(size) => Some(DimValue::Value(*size)),
        Dim::Symbolic(symbol) => Some(DimValue::Param(symbol.to_string())),
        Dim::Unknown => None,
    };
    DimensionProto { value, denotation: None, ..DimensionProto::default() }
}

/// Takes a type out of its message unless that would lose something: denotations, an unknown
/// element type, `-1` for a size. Such a message stays, for [`put_type`] to write.
pub(crate) fn take_type(field: &mut Option<TypeProto>) -> Option<ValueType> {
    let value_type = read_type(field.as_ref()?);
    if Some(write_type(&value_type)) == *field {
        *field = None;
    }
    Some(value_type)
}

/// The counterpart of [`take_type`]: what stayed in `field` is right as long as the type is the
/// one that was read from it.
pub(crate) fn put_type(field: &mut Option<TypeProto>, value_type: Option<&ValueType>) {
    let kept = field.as_ref().map(read_type);
    if kept.as_ref() == value_type {
        return;
    }
    let old = field.take().unwrap_or_default();
    *field = value_type.map(|value_type| TypeProto { value: write_type(value_type).value, ..old });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor_type(elem_type: i32, dims: Vec<DimensionProto>) -> TypeProto {
        let shape = Some(TensorShapeProto { dim: dims, ..TensorShapeProto::default() });
        let tensor =
            TensorTypeProto { elem_type: Some(elem_type), shape, ..TensorTypeProto::default() };
        TypeProto {
            value: Some(TypeValue::Tensor(tensor)),
            denotation: None,
            ..TypeProto::default()
        }
    }

    #[test]
    fn every_element_type_has_its_own_code() {
        for (dtype, code) in DTYPE_CODES {
            assert_eq!(dtype_from_code(dtype_code(dtype)), Some(dtype));
            assert_eq!(code_of(dtype), code);
        }
        assert_eq!(dtype_from_code(0), None);
    }

    #[test]
    fn an_unchanged_type_keeps_what_the_graph_cannot_say() {
        let minus_one = DimensionProto {
            value: Some(DimValue::Value(-1)),
            denotation: None,
            ..DimensionProto::default()
        };
        let digits = DimValue::Param("7".into());
        let named = DimensionProto {
            value: Some(digits),
            denotation: Some("DATA_BATCH".into()),
            ..DimensionProto::default()
        };
        for original in [tensor_type(1, vec![minus_one]), tensor_type(27, vec![named])] {
            let mut field = Some(original.clone());
            let value_type = take_type(&mut field);
            put_type(&mut field, value_type.as_ref());
            assert_eq!(field, Some(original));
        }
    }

    #[test]
    fn a_changed_type_replaces_the_one_that_was_kept() {
        let minus_one = DimensionProto {
            value: Some(DimValue::Value(-1)),
            denotation: None,
            ..DimensionProto::default()
        };
        let mut field = Some(tensor_type(1, vec![minus_one]));
        take_type(&mut field);
        let changed =
            ValueType::Tensor { dtype: Some(DType::I8), shape: Some(vec![Dim::Known(2)]) };
        put_type(&mut field, Some(&changed));
        let two = DimensionProto {
            value: Some(DimValue::Value(2)),
            denotation: None,
            ..DimensionProto::default()
        };
        assert_eq!(field, Some(tensor_type(3, vec![two])));
        put_type(&mut field, None);
        assert_eq!(field, None);
    }

    #[test]
    fn computed_dimensions_are_written_as_text() {
        let twice = &Dim::symbol("batch") * &Dim::Known(2);
        let proto = write_dim(&twice);
        assert_eq!(proto.value, Some(DimValue::Param("2*batch".into())));
    }
}
