//! Element types by their numbers in ONNX, as attributes give them.

use attar_graph::Node;
use attar_tensor::DType;

use crate::OpError;

/// The element type that ONNX gives this number.
fn dtype_of_code(code: i64) -> Option<DType> {
    Some(match code {
        1 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        4 => DType::U16,
        5 => DType::I16,
        6 => DType::I32,
        7 => DType::I64,
        8 => DType::String,
        9 => DType::Bool,
        10 => DType::F16,
        11 => DType::F64,
        12 => DType::U32,
        13 => DType::U64,
        14 => DType::Complex64,
        15 => DType::Complex128,
        16 => DType::BF16,
        17 => DType::F8E4M3FN,
        18 => DType::F8E4M3FNUZ,
        19 => DType::F8E5M2,
        20 => DType::F8E5M2FNUZ,
        21 => DType::U4,
        22 => DType::I4,
        23 => DType::F4E2M1,
        24 => DType::F8E8M0,
        25 => DType::U2,
        26 => DType::I2,
        27 => DType::F6E2M3,
        28 => DType::F6E3M2,
        _ => return None,
    })
}

/// The element type that an attribute names; `None` where it is absent or 0.
///
/// # Errors
/// When attar has no type of that number.
pub(crate) fn dtype_attribute(node: &Node, name: &str) -> Result<Option<DType>, OpError> {
    match node.int_or(name, 0)? {
        0 => Ok(None),
        code => dtype_of_code(code).map(Some).ok_or_else(|| OpError::Unsupported {
            what: format!("ONNX type {code} of attribute `{name}`"),
        }),
    }
}
