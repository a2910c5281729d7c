//! Products of a dequantized activation and a dequantized constant → `QuantizedMatMul`, and what is
//! quantized behind them.

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::{DType, Tensor};

use super::producer;
use crate::{ATTAR_DOMAIN, infer_graph};

/// `MatMul` and `Gemm` between dequantized values → `QuantizedMatMul`.
pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    let is_product = |node: &&Node| node.is("MatMul") || node.is("Gemm");
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, node)| is_product(node)) {
        if let Some(node) = quantized(&links, node) {
            plan.push(Edit::ReplaceNode { index, node });
        }
    }
    plan
}

fn quantized(links: &Links, product: &Node) -> Option<Node> {
    let is_transposed = product.is("Gemm") && product.int_or("transB", 0).ok()? != 0;
    if product.is("Gemm") {
        let is_plain = product.int_or("transA", 0).ok()? == 0
            && product.float_or("alpha", 1.0).ok()? == 1.0
            && product.float_or("beta", 1.0).ok()? == 1.0;
        if !is_plain {
            return None;
        }
    }
    let (_, left) = producer(links, product.input(0)?, "DequantizeLinear")?;
    let (_, right) = producer(links, product.input(1)?, "DequantizeLinear")?;
    let constant = |node: &Node, index: usize| links.constant(node.input(index)?);
    has_scalars(links, left).then_some(())?;
    let weight = constant(right, 0).filter(|w| w.dtype() == DType::I8 && w.rank() == 2)?;
    let scale = constant(right, 1).filter(|scale| scale.dtype() == DType::F32)?;
    let column_axis = usize::from(!is_transposed);
    let columns = weight.shape()[column_axis];
    let axis = right.int_or("axis", 1).ok()?;
    let axis = if axis < 0 { axis + 2 } else { axis };
    let is_per_column = scale.shape() == [columns] && usize::try_from(axis) == Ok(column_axis);
    let is_symmetric = match right.input(2) {
        Some(zero) => links.constant(zero)?.bytes().iter().all(|&byte| byte == 0),
        None => true,
    };
    if !(is_per_column || scale.element_count() == 1) || !is_symmetric {
        return None;
    }
    let mut inputs =
        vec![left.input(0)?, left.input(1)?, left.input(2)?, right.input(0)?, right.input(1)?];
    if let Some(bias) = product.input(2) {
        inputs.push(bias_row(links, bias, columns)?);
    }
    let node = Node::new("QuantizedMatMul", &product.name, &inputs, &[&product.outputs[0]]);
    let node = if is_transposed { node.with_attribute("transB", 1_i64) } else { node };
    Some(node.with_domain(ATTAR_DOMAIN))
}

/// The bias of a `Gemm`, if it is one constant per column, or becomes one when constants are folded:
/// int32 dequantized by constants.
fn bias_row<'a>(links: &Links, bias: &'a str, columns: usize) -> Option<&'a str> {
    let fits = |tensor: &Tensor| {
        tensor.element_count() == columns && tensor.shape().last() == Some(&columns)
    };
    if let Some(tensor) = links.constant(bias) {
        return (tensor.dtype() == DType::F32 && fits(tensor)).then_some(bias);
    }
    let (_, dequantize) = producer(links, bias, "DequantizeLinear")?;
    let is_constant = dequantize.inputs.iter().all(|name| links.constant(name).is_some());
    let levels = links.constant(dequantize.input(0)?)?;
    let scale = links.constant(dequantize.input(1)?)?;
    (is_constant && fits(levels) && scale.dtype() == DType::F32).then_some(bias)
}

/// Whether a `QuantizeLinear` or `DequantizeLinear` has one f32 scale and one u8 zero point.
fn has_scalars(links: &Links, node: &Node) -> bool {
    let is_scalar = |index: usize, dtype: DType| {
        let constant = node.input(index).and_then(|name| links.constant(name));
        constant.is_some_and(|tensor| tensor.element_count() == 1 && tensor.dtype() == dtype)
    };
    is_scalar(1, DType::F32) && is_scalar(2, DType::U8)
}

/// Whether a node quantizes to u8 by scalars, its division in f32.
fn is_plain_quantize(links: &Links, node: &Node) -> bool {
    node.is("QuantizeLinear")
        && node.attribute("precision").is_none()
        && node.attribute("output_dtype").is_none()
        && has_scalars(links, node)
}

/// `QuantizedMatMul` read by one `QuantizeLinear` alone → one node that gives levels.
pub fn plan_levels(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, quantize) in graph.nodes.iter().enumerate() {
        if !is_plain_quantize(&links, quantize) {
            continue;
        }
        let Some((_, product)) = links.producer(&quantize.inputs[0]) else { continue };
        let is_product = product.domain == ATTAR_DOMAIN
            && product.op_type == "QuantizedMatMul"
            && product.inputs.len() <= 6;
        if is_product && links.only_use(&quantize.inputs[0]).is_some() {
            let mut node = product.clone();
            node.outputs.clone_from(&quantize.outputs);
            node.inputs.resize(6, String::new());
            node.inputs.extend(quantize.inputs[1..3].iter().cloned());
            plan.push(Edit::ReplaceNode { index, node });
        }
    }
    plan
}

/// `LayerNormalization` or `SkipLayerNormalization`, and a `QuantizeLinear` that reads it →
/// `QuantizedLayerNormalization`, which gives both results.
pub fn plan_normalization(model: &Model) -> Plan {
    let graph = &model.graph;
    let facts = infer_graph(model);
    let links = Links::new(graph);
    let mut plan = Plan::default();
    let mut taken = std::collections::HashSet::new();
    for (index, quantize) in graph.nodes.iter().enumerate() {
        if !is_plain_quantize(&links, quantize) {
            continue;
        }
        let Some((norm_index, norm)) = links.producer(&quantize.inputs[0]) else { continue };
        let has_skip = norm.domain == ATTAR_DOMAIN && norm.op_type == "SkipLayerNormalization";
        let is_norm = (has_skip || norm.is("LayerNormalization")) && norm.outputs.len() == 1;
        let is_f32 = |name: &String| {
            name.is_empty() || facts.get(name).is_some_and(|fact| fact.dtype == DType::F32)
        };
        // The scale tells the row: the last axis alone.
        let parameter = norm.input(if has_skip { 2 } else { 1 });
        let is_row =
            parameter.and_then(|name| links.constant(name)).is_some_and(|scale| scale.rank() == 1)
                && matches!(norm.int_or("axis", -1), Ok(-1));
        let is_plain = is_row && norm.inputs.iter().all(is_f32);
        if !is_norm || !is_plain || !taken.insert(norm_index) {
            continue;
        }
        let mut node = norm.clone().with_domain(ATTAR_DOMAIN);
        node.op_type = "QuantizedLayerNormalization".into();
        if !has_skip {
            node.inputs.insert(1, String::new());
        }
        node.inputs.resize(4, String::new());
        node.inputs.extend(quantize.inputs[1..3].iter().cloned());
        node.outputs.push(quantize.outputs[0].clone());
        plan.push(Edit::ReplaceNode { index: norm_index, node });
        plan.push(Edit::RemoveNode { index });
    }
    plan
}
