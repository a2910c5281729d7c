//! Graphs ⇄ `GraphProto`.

use attar_graph::{Graph, StoredTensor, TensorForm, Value};
use indexmap::IndexMap;
use prost::Message;

use crate::error::OnnxError;
use crate::fields::{keep_rest, put_text, read_value, take_text, write_value};
use crate::messages::{GraphProto, SparseTensorProto, TensorProto, ValueInfoProto};
use crate::node::{read_node, write_node};
use crate::sparse::{name_of, read_sparse, unchanged, write_changed};
use crate::tensor::{Place, read_tensor, write_tensor};

pub(crate) fn read_graph(mut proto: GraphProto) -> Result<Graph, OnnxError> {
    let (dense, sparse) =
        (std::mem::take(&mut proto.initializer), std::mem::take(&mut proto.sparse_initializer));
    let nodes = std::mem::take(&mut proto.node).into_iter().map(read_node);
    Ok(Graph {
        nodes: nodes.collect::<Result<_, _>>()?,
        name: take_text(&mut proto.name),
        initializers: read_initializers(dense, &sparse)?,
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
    dense: Vec<TensorProto>,
    sparse: &[SparseTensorProto],
) -> Result<IndexMap<String, StoredTensor>, OnnxError> {
    let mut initializers = IndexMap::with_capacity(dense.len() + sparse.len());
    for (index, mut proto) in dense.into_iter().enumerate() {
        let name = take_text(&mut proto.name);
        check_name(&name, &initializers, || format!("initializer {index}"))?;
        let stored = read_tensor(proto, Place::Initializer(&name))?;
        initializers.insert(name, stored);
    }
    for (index, proto) in sparse.iter().enumerate() {
        let name = name_of(proto);
        check_name(name, &initializers, || format!("sparse initializer {index}"))?;
        initializers.insert(name.into(), read_sparse(proto, Place::Initializer(name))?);
    }
    Ok(initializers)
}

fn check_name(
    name: &str,
    others: &IndexMap<String, StoredTensor>,
    place: impl Fn() -> String,
) -> Result<(), OnnxError> {
    if name.is_empty() {
        return Err(OnnxError::Unnamed { place: place() });
    }
    if others.contains_key(name) {
        return Err(OnnxError::Duplicate { place: Place::Initializer(name).to_string() });
    }
    Ok(())
}

pub(crate) fn write_graph(graph: &Graph) -> Result<GraphProto, OnnxError> {
    let mut proto = GraphProto::decode(graph.extra.clone())?;
    proto.node = graph.nodes.iter().map(write_node).collect::<Result<_, _>>()?;
    put_text(&mut proto.name, &graph.name);
    for (name, stored) in &graph.initializers {
        if let Some(sparse) = unchanged(name, stored)? {
            proto.sparse_initializer.push(sparse);
            continue;
        }
        let tensor = match stored.form {
            TensorForm::Sparse => write_changed(stored)?,
            TensorForm::Raw | TensorForm::Typed => write_tensor(stored)?,
        };
        proto.initializer.push(TensorProto { name: Some(name.clone()), ..tensor });
    }
    proto.input = graph.inputs.iter().map(write_value).collect::<Result<_, _>>()?;
    proto.output = graph.outputs.iter().map(write_value).collect::<Result<_, _>>()?;
    proto.value_info = graph.values.iter().map(write_value).collect::<Result<_, _>>()?;
    put_text(&mut proto.doc_string, &graph.doc_string);
    Ok(proto)
}
