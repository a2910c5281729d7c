//! A product of a dequantized activation and a dequantized constant → `QuantizedMatMul`.

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::DType;

use super::producer;
use crate::ATTAR_DOMAIN;

pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, node)| node.is("MatMul")) {
        if let Some(node) = quantized(&links, node) {
            plan.push(Edit::ReplaceNode { index, node });
        }
    }
    plan
}

fn quantized(links: &Links, matmul: &Node) -> Option<Node> {
    let (_, left) = producer(links, matmul.input(0)?, "DequantizeLinear")?;
    let (_, right) = producer(links, matmul.input(1)?, "DequantizeLinear")?;
    let constant = |node: &Node, index: usize| links.constant(node.input(index)?);
    let left_scale = constant(left, 1)?;
    let left_zero = constant(left, 2).filter(|zero| zero.dtype() == DType::U8)?;
    if left_scale.element_count() != 1 || left_zero.element_count() != 1 {
        return None;
    }
    let weight = constant(right, 0).filter(|w| w.dtype() == DType::I8 && w.rank() == 2)?;
    let scale = constant(right, 1)?;
    let is_per_column =
        scale.shape() == [weight.shape()[1]] && matches!(right.int_or("axis", 1), Ok(1 | -1));
    let is_symmetric = match right.input(2) {
        Some(zero) => links.constant(zero)?.bytes().iter().all(|&byte| byte == 0),
        None => true,
    };
    if !(is_per_column || scale.element_count() == 1) || !is_symmetric {
        return None;
    }
    let inputs = [left.input(0)?, left.input(1)?, left.input(2)?, right.input(0)?, right.input(1)?];
    let node = Node::new("QuantizedMatMul", &matmul.name, &inputs, &[&matmul.outputs[0]]);
    Some(node.with_domain(ATTAR_DOMAIN))
}
