//! `MatMul` with a constant right side, the bias added to it, and the activation after that.

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::DType;

use crate::ATTAR_DOMAIN;

/// `MatMul` + Add of a constant row → `FusedMatMul`; and the same for `QuantizedMatMul`.
pub fn plan_bias(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, add) in graph.nodes.iter().enumerate().filter(|(_, node)| node.is("Add")) {
        if let Some(node) = biased(&links, add) {
            plan.push(Edit::ReplaceNode { index, node });
        }
    }
    plan
}

fn biased(links: &Links, add: &Node) -> Option<Node> {
    let (a, b) = (add.input(0)?, add.input(1)?);
    let (product, bias) = if links.constant(b).is_some() { (a, b) } else { (b, a) };
    let (_, producer) = links.producer(product)?;
    let columns = columns(links, producer)?;
    let bias_tensor = links.constant(bias)?;
    let fits = bias_tensor.dtype() == DType::F32
        && bias_tensor.element_count() == columns
        && bias_tensor.shape().last() == Some(&columns);
    if !fits || links.only_use(product).is_none() {
        return None;
    }
    let mut node = producer.clone();
    node.outputs.clone_from(&add.outputs);
    node.inputs.push(bias.to_string());
    if producer.is("MatMul") {
        node.op_type = "FusedMatMul".into();
        node.domain = ATTAR_DOMAIN.into();
    }
    Some(node)
}

/// Columns of the constant matrix of a product that can still take a bias.
fn columns(links: &Links, node: &Node) -> Option<usize> {
    let quantized = node.op_type == "QuantizedMatMul" && node.inputs.len() == 5;
    let right = if node.is("MatMul") {
        links.constant(node.input(1)?).filter(|b| b.dtype() == DType::F32)?
    } else if quantized {
        let right = links.constant(node.input(3)?)?;
        let is_transposed = node.int_or("transB", 0).ok()? != 0;
        return (right.rank() == 2).then(|| right.shape()[usize::from(!is_transposed)]);
    } else {
        return None;
    };
    (right.rank() == 2).then(|| right.shape()[1])
}

/// `FusedMatMul` or `QuantizedMatMul`, then an activation → one node.
pub fn plan_activation(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, node) in graph.nodes.iter().enumerate() {
        let is_activation = ["Gelu", "Relu", "Tanh", "Sigmoid"].iter().any(|op| node.is(op));
        let is_exact = node.text("approximate").is_ok_and(|kind| kind.unwrap_or("none") == "none");
        let Some(input) = node.input(0).filter(|_| is_activation) else { continue };
        let Some((_, product)) = links.producer(input) else { continue };
        let is_product = product.domain == ATTAR_DOMAIN
            && matches!(product.op_type.as_str(), "FusedMatMul" | "QuantizedMatMul")
            && product.attribute("activation").is_none();
        // The tanh form of GELU is one that integer products alone take.
        let is_taken = is_exact || product.op_type == "QuantizedMatMul";
        if is_product && is_taken && links.only_use(input).is_some() {
            let name = if is_exact { node.op_type.as_str() } else { "GeluTanh" };
            let mut fused = product.clone().with_attribute("activation", name);
            fused.outputs.clone_from(&node.outputs);
            plan.push(Edit::ReplaceNode { index, node: fused });
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    #[test]
    fn bias_and_activation_join_their_product() {
        let graph = graph_from_text(
            "w = [1 2; 3 4]\nb = [1 1]\nm = MatMul(x, w)\ns = Add(m, b)\ny = Relu(s)",
        );
        let mut model = Model { graph, ..Model::default() };
        for plan in [plan_bias, plan_activation, super::super::dead_nodes::plan] {
            let plan = plan(&model);
            attar_graph::apply(&mut model.graph, &plan).unwrap();
        }
        let node = &model.graph.nodes[0];
        assert_eq!((model.graph.nodes.len(), node.op_type.as_str()), (1, "FusedMatMul"));
        assert_eq!(node.inputs, ["x", "w", "b"]);
    }

    #[test]
    fn a_product_that_others_read_keeps_its_own_node() {
        let graph = graph_from_text(
            "w = [1 2; 3 4]\nb = [1 1]\nm = MatMul(x, w)\ns = Add(m, b)\ny = Mul(m, s)",
        );
        assert!(plan_bias(&Model { graph, ..Model::default() }).is_empty());
    }
}
