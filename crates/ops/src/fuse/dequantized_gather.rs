//! Rows of a table in 8 bits, cast and multiplied by the scales of the same rows →
//! `DequantizedGather`: no row passes through memory three times.

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::DType;

use super::producer;
use crate::ATTAR_DOMAIN;
use crate::onnx_type::dtype_attribute;

pub(super) fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, product) in graph.nodes.iter().enumerate().filter(|(_, node)| node.is("Mul")) {
        let found = operands(product).into_iter().find_map(|[a, b]| inputs(&links, a, b));
        if let Some(inputs) = found {
            let output = product.outputs[0].as_str();
            let node = Node::new("DequantizedGather", &product.name, &inputs, &[output]);
            plan.push(Edit::ReplaceNode { index, node: node.with_domain(ATTAR_DOMAIN) });
        }
    }
    plan
}

/// Both orders of the two operands.
fn operands(product: &Node) -> Vec<[&str; 2]> {
    match (product.input(0), product.input(1)) {
        (Some(a), Some(b)) => vec![[a, b], [b, a]],
        _ => Vec::new(),
    }
}

/// Levels, indices and scales, if `real` is what was cast of rows of levels and `factors` are the
/// scales of the same rows.
fn inputs<'a>(links: &Links<'a>, real: &str, factors: &str) -> Option<[&'a str; 3]> {
    let (_, cast) = producer(links, real, "Cast")
        .filter(|(_, cast)| matches!(dtype_attribute(cast, "to"), Ok(Some(DType::F32))))?;
    let (levels, indices) = rows(producer(links, cast.input(0)?, "Gather")?.1)?;
    let (scales, others) = rows(producer(links, factors, "Gather")?.1)?;
    let (table, column) = (links.constant(levels)?, links.constant(scales)?);
    let is_table = matches!(table.dtype(), DType::I8 | DType::U8) && table.rank() == 2;
    let is_column = column.dtype() == DType::F32 && column.shape() == [table.shape()[0], 1];
    (indices == others && is_table && is_column).then_some([levels, indices, scales])
}

/// Table and indices of a `Gather` of whole rows.
fn rows(gather: &Node) -> Option<(&str, &str)> {
    let is_first = gather.int_or("axis", 0).is_ok_and(|axis| axis == 0);
    Some((gather.input(0)?, gather.input(1)?)).filter(|_| is_first)
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;
    use attar_tensor::Tensor;

    use super::*;
    use crate::fuse::fuse_for_runtime;
    use crate::{Datum, Pool, Program};

    fn model(text: &str, table: Tensor) -> Model {
        let mut graph = graph_from_text(text);
        let rows = table.shape()[0];
        let scales: Vec<f32> = (0..rows).map(|row| 0.01 + row as f32 * 0.003).collect();
        graph.set_initializer("s", Tensor::new(&[rows, 1], &scales));
        graph.set_initializer("t", table);
        let constants = &graph.initializers;
        graph.inputs.retain(|input| !constants.contains_key(&input.name));
        Model { graph, opsets: [(String::new(), 17)].into_iter().collect(), ..Model::default() }
    }

    const TEXT: &str = "i: i64[2, n]\ng = Gather(t, i)\nr = Cast(g, to=1)\nf = Gather(s, i)\n";

    #[test]
    fn rows_have_the_bits_of_the_nodes_apart() {
        let levels = |step: usize| (0..7 * 19).map(move |i| (i * step % 251) as u8);
        let signed: Vec<i8> = levels(37).map(|level| (level ^ 128) as i8).collect();
        let unsigned: Vec<u8> = levels(53).collect();
        for table in [Tensor::new(&[7, 19], &signed), Tensor::new(&[7, 19], &unsigned)] {
            for product in ["y = Mul(r, f)", "y = Mul(f, r)"] {
                let model = model(&format!("{TEXT}{product}"), table.clone());
                let mut fused = model.clone();
                fuse_for_runtime(&mut fused).unwrap();
                let found: Vec<&str> =
                    fused.graph.nodes.iter().map(|node| node.op_type.as_str()).collect();
                assert_eq!(found, ["DequantizedGather"]);
                let run = |observed: &[String]| -> Tensor {
                    let program = Program::new(model.clone(), observed).unwrap();
                    let indices = [0_i64, 6, -1, 3, 3, -7];
                    let feeds = vec![Datum::Tensor(Tensor::new(&[2, 3], &indices))];
                    let outputs = program.run(feeds, &Pool::default()).unwrap();
                    outputs.into_iter().next().unwrap().into_tensor(0).unwrap()
                };
                // What is observed on the way cannot be fused away.
                let (fused, apart) = (run(&[]), run(&["r".to_string()]));
                assert_eq!(fused.shape(), [2, 3, 19]);
                assert_eq!(fused.slice::<f32>(), apart.slice::<f32>());
            }
        }
    }

    #[test]
    fn scales_of_other_rows_stay_apart() {
        let table = Tensor::new(&[7, 19], &[1_i8; 7 * 19]);
        let text = TEXT.replace("f = Gather(s, i)", "j = Neg(i)\nf = Gather(s, j)");
        let model = model(&format!("{text}y = Mul(r, f)"), table);
        assert!(plan(&model).edits.is_empty());
    }
}
