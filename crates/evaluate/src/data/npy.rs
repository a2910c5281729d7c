//! `NumPy`'s `.npy`: a header that says type and shape, then the elements.

use attar_tensor::{Bytes, DType, Tensor, element_count};

/// What the header says.
struct Header {
    dtype: DType,
    /// Bytes of one element, as they stand in the file.
    size: usize,
    is_big_endian: bool,
    is_column_major: bool,
    shape: Vec<usize>,
    /// Where the elements begin.
    start: usize,
}

/// Reads an array; in row-major, little-endian order its bytes are those of the file.
///
/// # Errors
/// What is wrong, without the file's name.
pub(crate) fn read_npy(bytes: &Bytes) -> Result<Tensor, String> {
    let header = read_header(bytes)?;
    let elements = bytes.slice(header.start..);
    let needed = element_count(&header.shape).and_then(|count| count.checked_mul(header.size));
    if needed != Some(elements.len()) {
        return Err(format!(
            "shape {:?} of {} does not fit its {} bytes",
            header.shape,
            header.dtype,
            elements.len()
        ));
    }
    let is_in_order = !header.is_column_major || header.shape.len() < 2;
    if is_in_order && !(header.is_big_endian && header.size > 1) {
        return tensor(&header, elements);
    }
    let mut values = if is_in_order { elements.to_vec() } else { row_major(&header, &elements) };
    if header.is_big_endian {
        values.chunks_exact_mut(header.size).for_each(<[u8]>::reverse);
    }
    tensor(&header, values.into())
}

fn tensor(header: &Header, bytes: Bytes) -> Result<Tensor, String> {
    if header.dtype == DType::Bool && bytes.iter().any(|&byte| byte > 1) {
        return Err("a boolean is neither 0 nor 1".into());
    }
    Tensor::from_bytes(header.dtype, &header.shape, bytes).map_err(|error| error.to_string())
}

/// The elements of an array whose first axis runs fastest, with the last one running fastest.
fn row_major(header: &Header, elements: &[u8]) -> Vec<u8> {
    let (shape, size) = (&header.shape, header.size);
    let mut out = Vec::with_capacity(elements.len());
    let mut index = vec![0; shape.len()];
    for _ in 0..elements.len() / size {
        let mut stride = 1;
        let mut offset = 0;
        for (&at, &dim) in index.iter().zip(shape) {
            offset += at * stride;
            stride *= dim;
        }
        out.extend_from_slice(&elements[offset * size..(offset + 1) * size]);
        for (at, &dim) in index.iter_mut().zip(shape).rev() {
            *at += 1;
            if *at < dim {
                break;
            }
            *at = 0;
        }
    }
    out
}

fn read_header(bytes: &[u8]) -> Result<Header, String> {
    let none = || "it is no NumPy array".to_string();
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or_else(none)?;
    let (&[major, _], rest) = rest.split_first_chunk::<2>().ok_or_else(none)?;
    let (length, rest, fixed) = if major == 1 {
        let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(none)?;
        (usize::from(u16::from_le_bytes(*length)), rest, 10)
    } else {
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(none)?;
        (u32::from_le_bytes(*length) as usize, rest, 12)
    };
    let text = rest.get(..length).ok_or("its header is cut short")?;
    let text = std::str::from_utf8(text).map_err(|_| "its header is no text")?;
    let description = field(text, "descr").ok_or("its header has no `descr`")?;
    let kind = description.trim_matches(['\'', '"']);
    let (dtype, size) = element_type(kind)?;
    let shape = field(text, "shape").ok_or("its header has no `shape`")?;
    let shape: Option<Vec<usize>> = shape
        .trim_matches(['(', ')'])
        .split(',')
        .map(str::trim)
        .filter(|dim| !dim.is_empty())
        .map(|dim| dim.trim_end_matches('L').parse().ok())
        .collect();
    Ok(Header {
        dtype,
        size,
        is_big_endian: kind.starts_with('>'),
        is_column_major: field(text, "fortran_order") == Some("True"),
        shape: shape.ok_or("its shape is none")?,
        start: fixed + length,
    })
}

/// The value under a key of a literal such as `{'descr': '<f4', 'shape': (3, 4), }`.
fn field<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let after = text.split_once(&format!("'{key}'"))?.1.trim_start().strip_prefix(':')?;
    let after = after.trim_start();
    let end = match after.as_bytes().first()? {
        b'(' => after.find(')')? + 1,
        b'\'' => after[1..].find('\'')? + 2,
        _ => after.find([',', '}'])?,
    };
    Some(after[..end].trim())
}

fn element_type(kind: &str) -> Result<(DType, usize), String> {
    let dtype = match kind.trim_start_matches(['<', '>', '|', '=']) {
        "f2" => DType::F16,
        "f4" => DType::F32,
        "f8" => DType::F64,
        "i1" => DType::I8,
        "i2" => DType::I16,
        "i4" => DType::I32,
        "i8" => DType::I64,
        "u1" => DType::U8,
        "u2" => DType::U16,
        "u4" => DType::U32,
        "u8" => DType::U64,
        "b1" => DType::Bool,
        _ => return Err(format!("elements of type `{kind}` are no numbers")),
    };
    Ok((dtype, dtype.bits() / 8))
}

#[cfg(test)]
pub(crate) mod testing {
    /// The bytes of an array as `NumPy` writes them.
    pub(crate) fn npy(kind: &str, order: &str, shape: &str, elements: &[u8]) -> Vec<u8> {
        let text = format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend(elements);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::testing::npy;
    use super::*;

    fn read(kind: &str, order: &str, shape: &str, elements: &[u8]) -> Result<Tensor, String> {
        read_npy(&npy(kind, order, shape, elements).into())
    }

    #[test]
    fn arrays_of_any_order_become_row_major() {
        let rows = Tensor::new(&[2, 3], &[1_i16, 2, 3, 4, 5, 6]);
        assert_eq!(read("<i2", "False", "(2, 3)", rows.bytes()).unwrap(), rows);
        let columns: Vec<u8> =
            [1_i16, 4, 2, 5, 3, 6].iter().flat_map(|x| x.to_be_bytes()).collect();
        assert_eq!(read(">i2", "True", "(2, 3)", &columns).unwrap(), rows);
        assert_eq!(read("|b1", "False", "(3,)", &[0, 1, 1]).unwrap().shape(), [3]);
        assert_eq!(read("<f4", "False", "()", &[0; 4]).unwrap().shape(), [0; 0]);
    }

    #[test]
    fn headers_that_lie_are_errors() {
        let cases: &[(&str, &str, &str, &[u8], &str)] = &[
            ("<f4", "False", "(2,)", &[0; 4], "does not fit its 4 bytes"),
            ("<f8", "False", "(18446744073709551615, 3)", &[0; 8], "does not fit"),
            ("<f4", "False", "(x,)", &[], "its shape is none"),
            ("|O", "False", "(1,)", &[0; 8], "elements of type `|O`"),
            ("|b1", "False", "(1,)", &[7], "neither 0 nor 1"),
        ];
        for (kind, order, shape, elements, expected) in cases {
            let error = read(kind, order, shape, elements).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let whole = npy("<f4", "False", "(1,)", &[0; 4]);
        for end in 0..whole.len() {
            assert!(read_npy(&whole[..end].to_vec().into()).is_err(), "{end}");
        }
    }
}
