//! Nodes and attributes ⇄ `NodeProto` and `AttributeProto`.

use attar_graph::{Attribute, AttributeValue, Node};
use attar_tensor::Bytes;
use indexmap::IndexMap;
use prost::Message;

use crate::error::OnnxError;
use crate::fields::{keep_rest, put_text, take_text};
use crate::graph::{read_graph, write_graph};
use crate::messages::{AttributeProto, NodeProto, attribute_type as kind};
use crate::tensor::{Place, read_tensor, write_tensor};
use crate::types::{put_type, read_type, take_type, write_type};

/// In `extra`, in place of the type: the file has no type, it was told from the value.
const TYPE_ABSENT: i32 = -1;
/// In `extra`, in place of the type: the file leaves the value out, since it is zero or empty.
const VALUE_ABSENT: i32 = -2;

pub(crate) fn read_node(mut proto: NodeProto) -> Result<Node, OnnxError> {
    let mut node = Node {
        name: take_text(&mut proto.name),
        op_type: take_text(&mut proto.op_type),
        domain: take_text(&mut proto.domain),
        overload: take_text(&mut proto.overload),
        inputs: std::mem::take(&mut proto.input),
        outputs: std::mem::take(&mut proto.output),
        doc_string: take_text(&mut proto.doc_string),
        ..Node::default()
    };
    node.attributes = read_attributes(std::mem::take(&mut proto.attribute), node.label())?;
    node.extra = keep_rest(&proto);
    Ok(node)
}

pub(crate) fn write_node(node: &Node) -> Result<NodeProto, OnnxError> {
    let mut proto = NodeProto::decode(node.extra.clone())?;
    put_text(&mut proto.name, &node.name);
    put_text(&mut proto.op_type, &node.op_type);
    put_text(&mut proto.domain, &node.domain);
    put_text(&mut proto.overload, &node.overload);
    put_text(&mut proto.doc_string, &node.doc_string);
    proto.input.clone_from(&node.inputs);
    proto.output.clone_from(&node.outputs);
    proto.attribute = write_attributes(&node.attributes)?;
    Ok(proto)
}

pub(crate) fn read_attributes(
    protos: Vec<AttributeProto>,
    node: &str,
) -> Result<IndexMap<String, Attribute>, OnnxError> {
    let mut attributes = IndexMap::with_capacity(protos.len());
    for mut proto in protos {
        let name = take_text(&mut proto.name);
        let place = Place::Attribute { node, attribute: &name };
        if name.is_empty() {
            return Err(OnnxError::Unnamed { place: format!("an attribute of node `{node}`") });
        }
        if attributes.contains_key(&name) {
            return Err(OnnxError::Duplicate { place: place.to_string() });
        }
        let attribute = read_attribute(proto, place)?;
        attributes.insert(name, attribute);
    }
    Ok(attributes)
}

pub(crate) fn write_attributes(
    attributes: &IndexMap<String, Attribute>,
) -> Result<Vec<AttributeProto>, OnnxError> {
    attributes.iter().map(|(name, attribute)| write_attribute(name, attribute)).collect()
}

fn read_attribute(mut proto: AttributeProto, place: Place<'_>) -> Result<Attribute, OnnxError> {
    let doc_string = take_text(&mut proto.doc_string);
    let reference = take_text(&mut proto.ref_attr_name);
    // A reference keeps its type in `extra`: the graph does not say what it refers to.
    let value = if reference.is_empty() {
        read_value(&mut proto, place)?
    } else {
        AttributeValue::Reference(reference)
    };
    let mut values_left = proto.clone();
    if matches!(value, AttributeValue::Type(_) | AttributeValue::Types(_)) {
        (values_left.tp, values_left.type_protos) = (None, Vec::new());
    }
    if value_kind(&values_left).is_some() {
        return Err(OnnxError::unsupported(place, "a value that is not of the attribute's type"));
    }
    Ok(Attribute { value, doc_string, extra: keep_rest(&proto) })
}

/// The type that an attribute's value fields speak for, the first of them if there are several.
fn value_kind(proto: &AttributeProto) -> Option<i32> {
    let present = [
        (proto.f.is_some(), kind::FLOAT),
        (proto.i.is_some(), kind::INT),
        (proto.s.is_some(), kind::STRING),
        (proto.t.is_some(), kind::TENSOR),
        (proto.g.is_some(), kind::GRAPH),
        (!proto.floats.is_empty(), kind::FLOATS),
        (!proto.ints.is_empty(), kind::INTS),
        (!proto.strings.is_empty(), kind::STRINGS),
        (!proto.tensors.is_empty(), kind::TENSORS),
        (!proto.graphs.is_empty(), kind::GRAPHS),
        (proto.sparse_tensor.is_some(), kind::SPARSE_TENSOR),
        (!proto.sparse_tensors.is_empty(), kind::SPARSE_TENSORS),
        (proto.tp.is_some(), kind::TYPE_PROTO),
        (!proto.type_protos.is_empty(), kind::TYPE_PROTOS),
    ];
    present.iter().find(|entry| entry.0).map(|entry| entry.1)
}

/// Takes the value, and leaves in place of the type what [`write_attribute`] must know.
fn read_value(proto: &mut AttributeProto, place: Place<'_>) -> Result<AttributeValue, OnnxError> {
    let present = value_kind(proto);
    let declared = proto.r#type.take();
    let code = declared.filter(|&code| code != kind::UNDEFINED).or(present);
    proto.r#type = match declared {
        None => Some(TYPE_ABSENT),
        Some(kind::UNDEFINED) => Some(kind::UNDEFINED),
        Some(kind::FLOAT | kind::INT | kind::STRING) if present.is_none() => Some(VALUE_ABSENT),
        Some(_) => None,
    };
    let missing = || OnnxError::unsupported(place, "an attribute without its value");
    Ok(match code.unwrap_or(kind::UNDEFINED) {
        kind::FLOAT => AttributeValue::Float(proto.f.take().unwrap_or_default()),
        kind::INT => AttributeValue::Int(proto.i.take().unwrap_or_default()),
        kind::STRING => AttributeValue::String(proto.s.take().unwrap_or_default()),
        kind::TENSOR => {
            let tensor = proto.t.take().ok_or_else(missing)?;
            AttributeValue::Tensor(read_tensor(tensor, place)?)
        }
        kind::GRAPH => {
            let graph = proto.g.take().ok_or_else(missing)?;
            AttributeValue::Graph(Box::new(read_graph(graph)?))
        }
        kind::FLOATS => AttributeValue::Floats(std::mem::take(&mut proto.floats)),
        kind::INTS => AttributeValue::Ints(std::mem::take(&mut proto.ints)),
        kind::STRINGS => AttributeValue::Strings(std::mem::take(&mut proto.strings)),
        kind::TENSORS => {
            let tensors = std::mem::take(&mut proto.tensors).into_iter();
            AttributeValue::Tensors(
                tensors.map(|tensor| read_tensor(tensor, place)).collect::<Result<_, _>>()?,
            )
        }
        kind::GRAPHS => {
            let graphs = std::mem::take(&mut proto.graphs).into_iter();
            AttributeValue::Graphs(graphs.map(read_graph).collect::<Result<_, _>>()?)
        }
        kind::TYPE_PROTO => AttributeValue::Type(take_type(&mut proto.tp).ok_or_else(missing)?),
        kind::TYPE_PROTOS => AttributeValue::Types(take_types(proto)),
        kind::SPARSE_TENSOR | kind::SPARSE_TENSORS | kind::UNDEFINED => {
            AttributeValue::Encoded(take_encoded(proto, code))
        }
        unknown => {
            return Err(OnnxError::unsupported(place, format!("attribute type {unknown}")));
        }
    })
}

/// As [`take_type`], for a list: it goes or stays as a whole.
fn take_types(proto: &mut AttributeProto) -> Vec<attar_graph::ValueType> {
    let types: Vec<_> = proto.type_protos.iter().map(read_type).collect();
    if types.iter().map(write_type).eq(proto.type_protos.iter().cloned()) {
        proto.type_protos.clear();
    }
    types
}

fn take_encoded(proto: &mut AttributeProto, code: Option<i32>) -> Bytes {
    let taken = AttributeProto {
        r#type: code,
        sparse_tensor: proto.sparse_tensor.take(),
        sparse_tensors: std::mem::take(&mut proto.sparse_tensors),
        ..AttributeProto::default()
    };
    keep_rest(&taken)
}

fn write_attribute(name: &str, attribute: &Attribute) -> Result<AttributeProto, OnnxError> {
    let mut proto = AttributeProto::decode(attribute.extra.clone())?;
    let kept_type = proto.r#type.take();
    if !matches!(attribute.value, AttributeValue::Type(_)) {
        proto.tp = None;
    }
    if !matches!(attribute.value, AttributeValue::Types(_)) {
        proto.type_protos.clear();
    }
    let code = write_attribute_value(&mut proto, &attribute.value)?;
    proto.r#type = match (kept_type, code) {
        (Some(TYPE_ABSENT), _) => None,
        (Some(VALUE_ABSENT), _) => {
            drop_default_value(&mut proto);
            code
        }
        // An undefined type, or the type of a reference.
        (Some(kept), _) if kept == kind::UNDEFINED || code.is_none() => Some(kept),
        _ => code,
    };
    put_text(&mut proto.doc_string, &attribute.doc_string);
    proto.name = Some(name.into());
    Ok(proto)
}

fn drop_default_value(proto: &mut AttributeProto) {
    proto.f = proto.f.filter(|value| value.to_bits() != 0);
    proto.i = proto.i.filter(|&value| value != 0);
    proto.s = proto.s.take().filter(|value| !value.is_empty());
}

/// Writes a value, and returns the type it has; `None` where the value does not tell.
fn write_attribute_value(
    proto: &mut AttributeProto,
    value: &AttributeValue,
) -> Result<Option<i32>, OnnxError> {
    Ok(Some(match value {
        AttributeValue::Float(value) => {
            proto.f = Some(*value);
            kind::FLOAT
        }
        AttributeValue::Int(value) => {
            proto.i = Some(*value);
            kind::INT
        }
        AttributeValue::String(value) => {
            proto.s = Some(value.clone());
            kind::STRING
        }
        AttributeValue::Tensor(stored) => {
            proto.t = Some(write_tensor(stored)?);
            kind::TENSOR
        }
        AttributeValue::Graph(graph) => {
            proto.g = Some(write_graph(graph)?);
            kind::GRAPH
        }
        AttributeValue::Type(value_type) => {
            put_type(&mut proto.tp, Some(value_type));
            kind::TYPE_PROTO
        }
        AttributeValue::Floats(values) => {
            proto.floats.clone_from(values);
            kind::FLOATS
        }
        AttributeValue::Ints(values) => {
            proto.ints.clone_from(values);
            kind::INTS
        }
        AttributeValue::Strings(values) => {
            proto.strings.clone_from(values);
            kind::STRINGS
        }
        AttributeValue::Tensors(tensors) => {
            proto.tensors = tensors.iter().map(write_tensor).collect::<Result<_, _>>()?;
            kind::TENSORS
        }
        AttributeValue::Graphs(graphs) => {
            proto.graphs = graphs.iter().map(write_graph).collect::<Result<_, _>>()?;
            kind::GRAPHS
        }
        AttributeValue::Types(types) => {
            if !proto.type_protos.iter().map(read_type).eq(types.iter().cloned()) {
                proto.type_protos = types.iter().map(write_type).collect();
            }
            kind::TYPE_PROTOS
        }
        AttributeValue::Reference(reference) => {
            proto.ref_attr_name = Some(reference.clone());
            return Ok(None);
        }
        AttributeValue::Encoded(bytes) => {
            let encoded = AttributeProto::decode(bytes.clone())?;
            (proto.sparse_tensor, proto.sparse_tensors) =
                (encoded.sparse_tensor, encoded.sparse_tensors);
            return Ok(encoded.r#type);
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{
        GraphProto, SparseTensorProto, TensorProto, TensorTypeProto, TypeProto, TypeValue,
    };

    fn attribute(code: i32) -> AttributeProto {
        let (name, r#type) = (Some("a".into()), Some(code));
        AttributeProto { name, r#type, ..AttributeProto::default() }
    }

    fn round_trip(original: &AttributeProto) -> AttributeValue {
        let read = read_attributes(vec![original.clone()], "n").unwrap();
        assert_eq!(write_attributes(&read).unwrap(), std::slice::from_ref(original));
        read["a"].value.clone()
    }

    fn error_of(original: AttributeProto) -> String {
        read_attributes(vec![original], "n").unwrap_err().to_string()
    }

    fn type_proto(elem_type: i32, denotation: Option<&str>) -> TypeProto {
        let tensor = TensorTypeProto {
            elem_type: Some(elem_type),
            shape: None,
            ..TensorTypeProto::default()
        };
        let denotation = denotation.map(Into::into);
        TypeProto { value: Some(TypeValue::Tensor(tensor)), denotation, ..TypeProto::default() }
    }

    #[test]
    fn every_kind_of_attribute_comes_back() {
        let tensor = TensorProto { data_type: Some(1), dims: vec![0], ..TensorProto::default() };
        let graph = GraphProto { name: Some("g".into()), ..GraphProto::default() };
        let sparse = SparseTensorProto { dims: vec![3], ..SparseTensorProto::default() };
        let text = Bytes::from_static(b"text");
        let with = |code, set: &dyn Fn(&mut AttributeProto)| {
            let mut proto = attribute(code);
            set(&mut proto);
            round_trip(&proto)
        };
        assert_eq!(with(kind::FLOAT, &|a| a.f = Some(0.0)), AttributeValue::Float(0.0));
        assert_eq!(with(kind::INT, &|a| a.i = Some(-3)), AttributeValue::Int(-3));
        let string = with(kind::STRING, &|a| a.s = Some(text.clone()));
        assert_eq!(string, AttributeValue::String(text.clone()));
        with(kind::TENSOR, &|a| a.t = Some(tensor.clone()));
        with(kind::GRAPH, &|a| a.g = Some(graph.clone()));
        with(kind::FLOATS, &|a| a.floats = vec![1.0, 2.0]);
        with(kind::INTS, &|a| a.ints = vec![1, 2]);
        assert_eq!(with(kind::INTS, &|_| ()), AttributeValue::Ints(vec![]));
        with(kind::STRINGS, &|a| a.strings = vec![text.clone(), Bytes::new()]);
        with(kind::TENSORS, &|a| a.tensors = vec![tensor.clone(); 2]);
        with(kind::GRAPHS, &|a| a.graphs = vec![graph.clone(); 2]);
        with(kind::SPARSE_TENSOR, &|a| a.sparse_tensor = Some(sparse.clone()));
        with(kind::SPARSE_TENSORS, &|a| a.sparse_tensors = vec![sparse.clone(); 2]);
        with(kind::SPARSE_TENSORS, &|_| ());
        with(kind::TYPE_PROTO, &|a| a.tp = Some(type_proto(1, None)));
        with(kind::TYPE_PROTO, &|a| a.tp = Some(type_proto(1, Some("TENSOR"))));
        with(kind::TYPE_PROTOS, &|a| a.type_protos = vec![type_proto(7, None)]);
        with(kind::TYPE_PROTOS, &|a| a.type_protos = vec![type_proto(99, None)]);
    }

    #[test]
    fn references_types_and_documentation_come_back() {
        let mut proto = attribute(kind::INT);
        proto.ref_attr_name = Some("axis".into());
        proto.doc_string = Some("why".into());
        assert_eq!(round_trip(&proto), AttributeValue::Reference("axis".into()));
    }

    #[test]
    fn absent_types_and_absent_values_stay_absent() {
        let untyped = AttributeProto { i: Some(4), r#type: None, ..attribute(0) };
        assert_eq!(round_trip(&untyped), AttributeValue::Int(4));
        let undefined = AttributeProto { i: Some(4), ..attribute(kind::UNDEFINED) };
        assert_eq!(round_trip(&undefined), AttributeValue::Int(4));
        assert_eq!(round_trip(&attribute(kind::INT)), AttributeValue::Int(0));
        assert_eq!(round_trip(&attribute(kind::FLOAT)), AttributeValue::Float(0.0));
        round_trip(&attribute(kind::UNDEFINED));
        round_trip(&AttributeProto { r#type: None, ..attribute(0) });
    }

    #[test]
    fn a_changed_value_is_written_with_its_own_type() {
        let original =
            AttributeProto { tp: Some(type_proto(99, None)), ..attribute(kind::TYPE_PROTO) };
        let mut read = read_attributes(vec![original], "n").unwrap();
        read["a"].value = AttributeValue::Int(5);
        let written = write_attributes(&read).unwrap();
        assert_eq!(written, [AttributeProto { i: Some(5), ..attribute(kind::INT) }]);
    }

    #[test]
    fn contradictions_are_named() {
        let two = AttributeProto { i: Some(1), f: Some(1.0), ..attribute(kind::INT) };
        let message = "attribute `a` of node `n`: a value that is not of the attribute's type is \
                       not supported";
        assert_eq!(error_of(two), message);
        assert_eq!(error_of(AttributeProto { f: Some(1.0), ..attribute(kind::INT) }), message);
        assert_eq!(
            error_of(attribute(kind::GRAPH)),
            "attribute `a` of node `n`: an attribute without its value is not supported"
        );
        assert_eq!(
            error_of(attribute(77)),
            "attribute `a` of node `n`: attribute type 77 is not supported"
        );
        assert_eq!(error_of(AttributeProto::default()), "an attribute of node `n` has no name");
        let twice = read_attributes(vec![attribute(kind::INT); 2], "n").unwrap_err();
        assert_eq!(twice.to_string(), "attribute `a` of node `n` is there twice");
    }
}
