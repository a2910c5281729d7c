//! Embedding tables in 8 bits, one scale per row: a looked-up row is cast and scaled.

use attar_graph::{Links, Node};
use attar_tensor::{DType, Tensor};

use super::nodes::Builder;
use super::weight::quantize_channels;
use crate::{Context, PassError};

/// Bytes below which a table is not worth three more nodes.
const SIZE_BYTES_MIN: usize = 256 << 10;

/// Quantizes the tables of all `Gather` nodes and says how many.
pub(crate) fn quantize_embeddings(
    builder: &mut Builder,
    links: &Links,
    context: &Context,
) -> Result<usize, PassError> {
    let mut count = 0;
    for (index, node) in builder.graph.nodes.iter().enumerate() {
        let (Some(name), Some(ids)) = (node.input(0), node.input(1)) else { continue };
        let table = links.constant(name).filter(|table| {
            table.dtype() == DType::F32 && table.rank() == 2 && table.size_bytes() >= SIZE_BYTES_MIN
        });
        let Some(table) = table.filter(|_| node.is("Gather") && node.int_or("axis", 0) == Ok(0))
        else {
            continue;
        };
        if context.exclude.matches(name) || context.exclude.matches(node.label()) {
            continue;
        }
        let rounded = quantize_channels(name, table, 0, 127)?;
        let [rows, scales] = [format!("{name}_quantized"), format!("{name}_scale")];
        let scale_column = Tensor::new(&[table.shape()[0], 1], rounded.scales.slice::<f32>());
        builder.set(&rows, rounded.values);
        builder.set(&scales, scale_column);
        builder.replaced(name);
        let output = &node.outputs[0];
        let named = |suffix: &str| format!("{output}_{suffix}");
        let (row, real, scale) = (named("row"), named("real"), named("row_scale"));
        let gather = |source: &str, to: &str| Node::new("Gather", to, &[source, ids], &[to]);
        builder.add(gather(&rows, &row));
        builder.add(Node::new("Cast", &real, &[&row], &[&real]).with_attribute("to", 1_i64));
        builder.add(gather(&scales, &scale));
        let product = Node::new("Mul", node.label(), &[&real, &scale], &[output]);
        builder.plan.push(attar_graph::Edit::ReplaceNode { index, node: product });
        count += 1;
    }
    Ok(count)
}
