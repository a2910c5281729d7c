//! Taking fields out of messages and putting them back, so that what is not mapped survives.
//!
//! A mapped field moves into the graph when it has a value that is not the default. A default that
//! is written out (`domain: ""`) stays in the message, hence in `extra`, and so comes back as it was.

use attar_graph::Value;
use attar_tensor::Bytes;
use indexmap::IndexMap;
use prost::Message;

use crate::error::OnnxError;
use crate::messages::{OperatorSetIdProto, StringStringEntryProto, ValueInfoProto};
use crate::types::{put_type, take_type};

/// What is left of a message after its mapped fields were taken; empty when nothing is.
pub(crate) fn keep_rest(message: &impl Message) -> Bytes {
    if message.encoded_len() == 0 { Bytes::new() } else { message.encode_to_vec().into() }
}

pub(crate) fn take_text(field: &mut Option<String>) -> String {
    match field {
        Some(text) if !text.is_empty() => std::mem::take(field).unwrap_or_default(),
        _ => String::new(),
    }
}

pub(crate) fn put_text(field: &mut Option<String>, text: &str) {
    if !text.is_empty() {
        *field = Some(text.into());
    }
}

pub(crate) fn take_int(field: &mut Option<i64>) -> i64 {
    match field {
        Some(value) if *value != 0 => std::mem::take(field).unwrap_or_default(),
        _ => 0,
    }
}

pub(crate) fn put_int(field: &mut Option<i64>, value: i64) {
    if value != 0 {
        *field = Some(value);
    }
}

/// Operator sets by domain. An entry that says more than that (an empty domain written out, fields
/// that attar does not know) stays, without its version.
pub(crate) fn take_opsets(
    field: &mut Vec<OperatorSetIdProto>,
) -> Result<IndexMap<String, i64>, OnnxError> {
    let mut opsets = IndexMap::new();
    for mut proto in std::mem::take(field) {
        let domain = proto.domain.clone().unwrap_or_default();
        let place = format!("operator set `{domain}`");
        let Some(version) = proto.version.take() else {
            return Err(OnnxError::unsupported(place, "an operator set without its version"));
        };
        let says_more = proto.domain.as_deref() == Some("") || !proto.unknown.is_empty();
        if opsets.insert(domain, version).is_some() {
            return Err(OnnxError::Duplicate { place });
        }
        if says_more {
            field.push(proto);
        }
    }
    Ok(opsets)
}

pub(crate) fn put_opsets(field: &mut Vec<OperatorSetIdProto>, opsets: &IndexMap<String, i64>) {
    let kept = std::mem::take(field);
    for (domain, &version) in opsets {
        let of_domain =
            |proto: &&OperatorSetIdProto| proto.domain.as_deref().unwrap_or("") == domain;
        let proto = kept.iter().find(of_domain).cloned().unwrap_or_else(|| OperatorSetIdProto {
            domain: Some(domain.clone()).filter(|domain| !domain.is_empty()),
            ..OperatorSetIdProto::default()
        });
        field.push(OperatorSetIdProto { version: Some(version), ..proto });
    }
}

/// Key-value pairs, unless a key is there twice, half a pair is missing, or one says more: then all
/// stay.
pub(crate) fn take_entries(field: &mut Vec<StringStringEntryProto>) -> IndexMap<String, String> {
    let mut entries = IndexMap::new();
    for entry in field.iter() {
        if !entry.unknown.is_empty() {
            return IndexMap::new();
        }
        let (Some(key), Some(value)) = (&entry.key, &entry.value) else { return IndexMap::new() };
        if entries.insert(key.clone(), value.clone()).is_some() {
            return IndexMap::new();
        }
    }
    field.clear();
    entries
}

pub(crate) fn put_entries(
    field: &mut Vec<StringStringEntryProto>,
    entries: &IndexMap<String, String>,
) {
    field.extend(entries.iter().map(|(key, value)| entry(key, value)));
}

pub(crate) fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value.into()),
        ..StringStringEntryProto::default()
    }
}

pub(crate) fn read_value(mut proto: ValueInfoProto) -> Value {
    Value {
        name: take_text(&mut proto.name),
        value_type: take_type(&mut proto.r#type),
        doc_string: take_text(&mut proto.doc_string),
        extra: keep_rest(&proto),
    }
}

pub(crate) fn write_value(value: &Value) -> Result<ValueInfoProto, OnnxError> {
    let mut proto = ValueInfoProto::decode(value.extra.clone())?;
    put_text(&mut proto.name, &value.name);
    put_type(&mut proto.r#type, value.value_type.as_ref());
    put_text(&mut proto.doc_string, &value.doc_string);
    Ok(proto)
}

#[cfg(test)]
mod tests {
    use attar_graph::Dim;

    use super::*;

    fn opset(domain: Option<&str>, version: Option<i64>) -> OperatorSetIdProto {
        OperatorSetIdProto {
            domain: domain.map(Into::into),
            version,
            ..OperatorSetIdProto::default()
        }
    }

    #[test]
    fn an_explicit_empty_domain_is_written_again() {
        for domain in [None, Some("")] {
            let original = vec![opset(domain, Some(17)), opset(Some("com.microsoft"), Some(1))];
            let mut field = original.clone();
            let opsets = take_opsets(&mut field).unwrap();
            assert_eq!(opsets[""], 17);
            put_opsets(&mut field, &opsets);
            assert_eq!(field, original);
        }
    }

    #[test]
    fn two_versions_of_one_operator_set_are_an_error() {
        let mut field = vec![opset(None, Some(17)), opset(Some(""), Some(18))];
        let error = take_opsets(&mut field).unwrap_err();
        assert_eq!(error.to_string(), "operator set `` is there twice");
    }

    #[test]
    fn entries_that_no_map_can_hold_stay_as_they_are() {
        let half = StringStringEntryProto {
            key: Some("k".into()),
            value: None,
            ..StringStringEntryProto::default()
        };
        for original in [vec![entry("k", "1"), entry("k", "2")], vec![half]] {
            let mut field = original.clone();
            let entries = take_entries(&mut field);
            assert!(entries.is_empty());
            put_entries(&mut field, &entries);
            assert_eq!(field, original);
        }
    }

    #[test]
    fn a_value_without_a_type_stays_without_one() {
        let original = ValueInfoProto { name: Some("x".into()), ..ValueInfoProto::default() };
        let value = read_value(original.clone());
        assert!(value.value_type.is_none() && value.extra.is_empty());
        assert_eq!(write_value(&value).unwrap(), original);
    }

    #[test]
    fn a_value_made_here_is_written_with_its_shape() {
        let value = Value::tensor("x", attar_tensor::DType::F32, vec![Dim::symbol("batch")]);
        let read = read_value(write_value(&value).unwrap());
        assert_eq!(read, value);
    }
}
