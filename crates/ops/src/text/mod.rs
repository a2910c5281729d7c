//! Operators over strings.

mod label_encoder;
mod regex_full_match;
mod string_concat;
mod string_normalizer;
mod string_split;
mod tf_idf_vectorizer;

pub(crate) use label_encoder::LabelEncoder;
pub(crate) use regex_full_match::RegexFullMatch;
pub(crate) use string_concat::StringConcat;
pub(crate) use string_normalizer::StringNormalizer;
pub(crate) use string_split::StringSplit;
pub(crate) use tf_idf_vectorizer::TfIdfVectorizer;

use attar_graph::{AttributeValue, Node};
use attar_tensor::{Bytes, DType, Tensor};

use crate::{OpError, Run};

/// The strings of an input.
fn strings<'a>(run: &'a Run, index: usize) -> Result<&'a [Bytes], OpError> {
    let x = run.input(index)?;
    if x.dtype() == DType::String {
        return Ok(x.strings());
    }
    Err(OpError::DType { index, found: x.dtype() })
}

/// A string that must be UTF-8.
fn text_of(string: &Bytes) -> Result<&str, OpError> {
    std::str::from_utf8(string)
        .map_err(|_| OpError::value("a string", String::from_utf8_lossy(string), "UTF-8"))
}

/// The strings of an attribute; none where it is absent.
fn string_list<'a>(node: &'a Node, name: &str) -> Result<Option<&'a [Bytes]>, OpError> {
    match node.attribute(name) {
        None => Ok(None),
        Some(AttributeValue::Strings(strings)) => Ok(Some(strings)),
        Some(other) => Err(wrong_kind(name, other, "strings")),
    }
}

/// The floats of an attribute; none where it is absent.
fn float_list<'a>(node: &'a Node, name: &str) -> Result<Option<&'a [f32]>, OpError> {
    match node.attribute(name) {
        None => Ok(None),
        Some(AttributeValue::Floats(floats)) => Ok(Some(floats)),
        Some(other) => Err(wrong_kind(name, other, "floats")),
    }
}

/// The tensor of an attribute; none where it is absent.
fn tensor_attribute(node: &Node, name: &str) -> Result<Option<Tensor>, OpError> {
    match node.attribute(name) {
        None => Ok(None),
        Some(AttributeValue::Tensor(stored)) => Ok(Some(stored.tensor.aligned())),
        Some(other) => Err(wrong_kind(name, other, "a tensor")),
    }
}

fn wrong_kind(name: &str, found: &AttributeValue, expected: &str) -> OpError {
    OpError::value(&format!("attribute `{name}`"), found.kind(), expected)
}

/// A tensor of as many strings as its shape has elements.
fn string_tensor(shape: &[usize], strings: Vec<Bytes>) -> Tensor {
    Tensor::from_strings(shape, strings).expect("one string for each element")
}
