//! Models and local functions ⇄ `ModelProto` and `FunctionProto`.

use attar_graph::{Function, Model};
use prost::Message;

use crate::error::OnnxError;
use crate::fields::{
    keep_rest, put_entries, put_int, put_opsets, put_text, take_entries, take_int, take_opsets,
    take_text,
};
use crate::graph::{read_graph, write_graph};
use crate::messages::{FunctionProto, ModelProto};
use crate::node::{read_attributes, read_node, write_attributes, write_node};

pub(crate) fn read_model(mut proto: ModelProto) -> Result<Model, OnnxError> {
    let graph = proto.graph.take().ok_or(OnnxError::NoGraph)?;
    let functions = std::mem::take(&mut proto.functions).into_iter().map(read_function);
    Ok(Model {
        ir_version: take_int(&mut proto.ir_version),
        opsets: take_opsets(&mut proto.opset_import)?,
        producer_name: take_text(&mut proto.producer_name),
        producer_version: take_text(&mut proto.producer_version),
        domain: take_text(&mut proto.domain),
        model_version: take_int(&mut proto.model_version),
        doc_string: take_text(&mut proto.doc_string),
        metadata: take_entries(&mut proto.metadata_props),
        functions: functions.collect::<Result<_, _>>()?,
        graph: read_graph(graph)?,
        extra: keep_rest(&proto),
    })
}

pub(crate) fn write_model(model: &Model) -> Result<ModelProto, OnnxError> {
    let mut proto = ModelProto::decode(model.extra.clone())?;
    put_int(&mut proto.ir_version, model.ir_version);
    put_opsets(&mut proto.opset_import, &model.opsets);
    put_text(&mut proto.producer_name, &model.producer_name);
    put_text(&mut proto.producer_version, &model.producer_version);
    put_text(&mut proto.domain, &model.domain);
    put_int(&mut proto.model_version, model.model_version);
    put_text(&mut proto.doc_string, &model.doc_string);
    put_entries(&mut proto.metadata_props, &model.metadata);
    proto.functions = model.functions.iter().map(write_function).collect::<Result<_, _>>()?;
    proto.graph = Some(write_graph(&model.graph)?);
    Ok(proto)
}

fn read_function(mut proto: FunctionProto) -> Result<Function, OnnxError> {
    let name = take_text(&mut proto.name);
    let defaults = std::mem::take(&mut proto.attribute_proto);
    let nodes = std::mem::take(&mut proto.node).into_iter().map(read_node);
    Ok(Function {
        domain: take_text(&mut proto.domain),
        overload: take_text(&mut proto.overload),
        inputs: std::mem::take(&mut proto.input),
        outputs: std::mem::take(&mut proto.output),
        attributes: std::mem::take(&mut proto.attribute),
        attribute_defaults: read_attributes(defaults, &name)?,
        nodes: nodes.collect::<Result<_, _>>()?,
        opsets: take_opsets(&mut proto.opset_import)?,
        doc_string: take_text(&mut proto.doc_string),
        extra: keep_rest(&proto),
        name,
    })
}

fn write_function(function: &Function) -> Result<FunctionProto, OnnxError> {
    let mut proto = FunctionProto::decode(function.extra.clone())?;
    put_text(&mut proto.name, &function.name);
    put_text(&mut proto.domain, &function.domain);
    put_text(&mut proto.overload, &function.overload);
    proto.input.clone_from(&function.inputs);
    proto.output.clone_from(&function.outputs);
    proto.attribute.clone_from(&function.attributes);
    proto.attribute_proto = write_attributes(&function.attribute_defaults)?;
    proto.node = function.nodes.iter().map(write_node).collect::<Result<_, _>>()?;
    put_opsets(&mut proto.opset_import, &function.opsets);
    put_text(&mut proto.doc_string, &function.doc_string);
    Ok(proto)
}
