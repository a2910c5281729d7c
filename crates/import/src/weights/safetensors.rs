//! Safetensors files, their tensors left where they lie.

use std::collections::BTreeMap;
use std::path::Path;

use attar_tensor::{Bytes, DType, Tensor};
use safetensors::{Dtype, SafeTensors};

use crate::ImportError;

pub(super) fn parse(file: &Path, bytes: &Bytes) -> Result<BTreeMap<String, Tensor>, ImportError> {
    let malformed = |reason: String| ImportError::Malformed {
        file: file.into(),
        expected: "a safetensors or PyTorch file",
        reason,
    };
    // The crate checks the header: that ranges lie in the file, without gaps and overlaps, and
    // have the sizes that shapes and types need.
    let parsed = SafeTensors::deserialize(bytes).map_err(|error| malformed(error.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in parsed.iter() {
        let dtype = dtype(view.dtype()).ok_or_else(|| ImportError::Unsupported {
            file: file.into(),
            what: format!("the type of `{name}`"),
            found: view.dtype().to_string(),
            supported: "integers, bool, f16, bf16, f32, f64, and f8 with 4 or 5 bits of exponent"
                .into(),
        })?;
        let tensor = Tensor::from_bytes(dtype, view.shape(), bytes.slice_ref(view.data()))
            .map_err(|error| malformed(format!("`{name}`: {error}")))?;
        tensors.insert(name.to_string(), tensor);
    }
    Ok(tensors)
}

fn dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F8_E4M3 => DType::F8E4M3FN,
        Dtype::F8_E5M2 => DType::F8E5M2,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Bytes {
        let length = (header.len() as u64).to_le_bytes();
        Bytes::from([&length[..], header.as_bytes(), data].concat())
    }

    fn error(bytes: &Bytes) -> String {
        parse(Path::new("m.safetensors"), bytes).unwrap_err().to_string()
    }

    #[test]
    fn tensors_share_the_bytes_of_the_file() {
        let header = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
        let bytes = file(header, &[0, 0x3c, 0, 0xc0]);
        let tensors = parse(Path::new("m.safetensors"), &bytes).unwrap();
        assert_eq!(tensors["a"].bytes().as_ptr(), bytes[bytes.len() - 4..].as_ptr());
        assert_eq!(tensors["a"].to_f32().unwrap(), [1.0, -2.0]);
    }

    #[test]
    fn a_header_that_lies_is_an_error() {
        let far = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert!(error(&file(far, &[0; 4])).contains("m.safetensors"));
        let large = r#"{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}"#;
        assert!(error(&file(large, &[0; 4])).contains("is not a safetensors or PyTorch file"));
        let overflow = format!(
            r#"{{"a":{{"dtype":"F32","shape":[{0},{0}],"data_offsets":[0,4]}}}}"#,
            u64::MAX
        );
        assert!(error(&file(&overflow, &[0; 4])).contains("is not a safetensors"));
        for ranges in [["[0,4]", "[2,6]"], ["[0,4]", "[6,10]"], ["[4,0]", "[0,4]"]] {
            let [a, b] = ranges
                .map(|range| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":{range}}}"#));
            let header = format!(r#"{{"a":{a},"b":{b}}}"#);
            assert!(error(&file(&header, &[0; 10])).contains("is not a safetensors"), "{ranges:?}");
        }
        let deep = "[".repeat(100_000);
        assert!(error(&file(&deep, &[])).contains("is not a safetensors"));
        let long = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
        assert!(error(&Bytes::from(long)).contains("is not a safetensors"));
        assert!(error(&Bytes::new()).contains("is not a safetensors"));
    }
}
