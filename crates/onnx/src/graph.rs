//! Graphs ⇄ `GraphProto`.

use attar_graph::{Graph, StoredTensor, Value};
use indexmap::IndexMap;
use prost::Message;

use crate::error::OnnxError;
use crate::fields::{keep_rest, put_text, read_value, take_text, write_value};
use crate::messages::{GraphProto, TensorProto, ValueInfoProto};
use crate::node::{read_node, write_node};
use crate::tensor::{Place, read_tensor, write_tensor};

pub(crate) fn read_graph(mut proto: GraphProto) -> Result<Graph, OnnxError> {
    if let Some(sparse) = proto.sparse_initializer.first() {
        let name = sparse.values.as_ref().and_then(|values| values.name.as_deref());
        let place = format!("`{}` (initializer)", name.unwrap_or_default());
        return Err(OnnxError::unsupported(place, "a sparse tensor"));
    }
    let nodes = std::mem::take(&mut proto.node).into_iter().map(read_node);
    Ok(Graph {
        nodes: nodes.collect::<Result<_, _>>()?,
        name: take_text(&mut proto.name),
        initializers: read_initializers(std::mem::take(&mut proto.initializer))?,
        inputs: read_values(&mut proto.input),
        outputs: read_values(&mut proto.output),
        values: read_values(&mut proto.value_info),
        doc_string: take_text(&mut proto.doc_string),
        extra: keep_rest(&proto),
    })
}

fn read_values(protos: &mut Vec<ValueInfoProto>) -> Vec<Value> {
    std::mem::take(protos).into_iter().map(read_value).collect()
}

fn read_initializers(
    protos: Vec<TensorProto>,
) -> Result<IndexMap<String, StoredTensor>, OnnxError> {
    let mut initializers = IndexMap::with_capacity(protos.len());
    for (index, mut proto) in protos.into_iter().enumerate() {
        let name = take_text(&mut proto.name);
        if name.is_empty() {
            return Err(OnnxError::Unnamed { place: format!("initializer {index}") });
        }
        let place = Place::Initializer(&name);
        if initializers.contains_key(&name) {
            return Err(OnnxError::Duplicate { place: place.to_string() });
        }
        let stored = read_tensor(proto, place)?;
        initializers.insert(name, stored);
    }
    Ok(initializers)
}

pub(crate) fn write_graph(graph: &Graph) -> Result<GraphProto, OnnxError> {
    let mut proto = GraphProto::decode(graph.extra.clone())?;
    proto.node = graph.nodes.iter().map(write_node).collect::<Result<_, _>>()?;
    put_text(&mut proto.name, &graph.name);
    proto.initializer = graph
        .initializers
        .iter()
        .map(|(name, stored)| Ok(TensorProto { name: Some(name.clone()), ..write_tensor(stored)? }))
        .collect::<Result<_, OnnxError>>()?;
    proto.input = graph.inputs.iter().map(write_value).collect::<Result<_, _>>()?;
    proto.output = graph.outputs.iter().map(write_value).collect::<Result<_, _>>()?;
    proto.value_info = graph.values.iter().map(write_value).collect::<Result<_, _>>()?;
    put_text(&mut proto.doc_string, &graph.doc_string);
    Ok(proto)
}
