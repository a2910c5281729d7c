//! Where quantization goes: which nodes run in 8 bits, and which values carry a range.

use std::collections::{BTreeMap, BTreeSet};

use attar_graph::{Graph, Links, Node, Use};

use super::nodes::weight_of;
use crate::Context;

/// The values to quantize and who reads them in 8 bits.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    /// Nodes with a constant weight, by index.
    pub(crate) products: Vec<usize>,
    /// Readers of each quantized value, as (node, input).
    pub(crate) readers: BTreeMap<String, Vec<(usize, usize)>>,
}

impl Placement {
    /// Products take 8-bit inputs. What convolutions produce stays in 8 bits through the
    /// activation after them, residual additions and pooling, so that a runtime can keep a whole
    /// image network in integers; what matrix products produce stays float, since normalization
    /// and attention follow.
    pub(crate) fn new(graph: &Graph, links: &Links, context: &Context) -> Self {
        let mut placement = Self::default();
        let mut image_values: BTreeSet<&str> = BTreeSet::new();
        for (index, node) in graph.nodes.iter().enumerate() {
            if context.exclude.matches(node.label()) {
                continue;
            }
            if let Some(weight) = weight_of(links, node) {
                if context.exclude.matches(weight.name) || !is_quantizable(node) {
                    continue;
                }
                placement.products.push(index);
                placement.read(&node.inputs[0], (index, 0));
                if node.is("Conv") {
                    let output = after_activation(links, node);
                    placement.read_by_all(links, output);
                    image_values.insert(output);
                }
            } else if is_carrier(node)
                && node.inputs.iter().all(|input| image_values.contains(input.as_str()))
            {
                for (input, name) in node.inputs.iter().enumerate() {
                    placement.read(name, (index, input));
                }
                placement.read_by_all(links, &node.outputs[0]);
                image_values.insert(&node.outputs[0]);
            }
        }
        placement
    }

    /// Leaves these products in float. A value that no product or carrier reads any more is left
    /// alone too.
    pub(crate) fn leave(&mut self, nodes: &BTreeSet<usize>) {
        self.products.retain(|index| !nodes.contains(index));
        for readers in self.readers.values_mut() {
            readers.retain(|(index, _)| !nodes.contains(index));
        }
        self.readers.retain(|_, readers| !readers.is_empty());
    }

    fn read(&mut self, value: &str, reader: (usize, usize)) {
        let readers = self.readers.entry(value.into()).or_default();
        if !readers.contains(&reader) {
            readers.push(reader);
        }
    }

    fn read_by_all(&mut self, links: &Links, value: &str) {
        self.readers.entry(value.into()).or_default();
        for &Use { node, input } in links.uses(value) {
            if let Some(input) = input {
                self.read(value, (node, input));
            }
        }
    }
}

/// A Gemm that scales is not one that runtimes have in 8 bits.
fn is_quantizable(node: &Node) -> bool {
    !node.is("Gemm")
        || (node.float_or("alpha", 1.0) == Ok(1.0)
            && node.float_or("beta", 1.0) == Ok(1.0)
            && node.int_or("transA", 0) == Ok(0))
}

fn is_carrier(node: &Node) -> bool {
    node.is("Add") || node.is("GlobalAveragePool")
}

/// What the node produces, after the clamp that follows it and that a runtime runs with it.
fn after_activation<'a>(links: &Links<'a>, node: &'a Node) -> &'a str {
    match links.only_use(&node.outputs[0]) {
        Some((_, next)) if next.is("Relu") || next.is("Clip") => &next.outputs[0],
        _ => &node.outputs[0],
    }
}
