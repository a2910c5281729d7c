//! The weights that are quantized, and who reads them.

use std::collections::BTreeMap;

use attar_graph::{Graph, Links, Node};
use attar_tensor::{DType, Tensor};

use super::super::nodes::weight_of;
use super::super::product::transposed;
use super::grid::{Grid, Levels};
use crate::Context;

/// A constant weight, and the bits it is to have.
pub(crate) struct Target<'a> {
    pub(crate) name: &'a str,
    pub(crate) tensor: &'a Tensor,
    pub(crate) bits: u32,
    /// Inputs of a block, where it has not those of all: 0 for all of an output.
    pub(crate) own_block: Option<usize>,
    pub(super) layout: Layout,
    /// Nodes that read it so, with the input.
    pub(crate) readers: Vec<(usize, usize)>,
    /// Whether matrix products read it, whose inputs are rows.
    pub(super) is_matrix_product: bool,
    /// Whether nothing else reads it.
    pub(super) is_own: bool,
}

/// What a weight's axes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Layout {
    /// [inputs, outputs].
    InputsFirst,
    /// [outputs, inputs].
    InputsLast,
    /// [directions, outputs, inputs], of recurrent layers.
    Recurrent,
    /// [outputs, inputs, kernel…].
    Kernel,
}

impl Target<'_> {
    /// Inputs and outputs.
    pub(crate) fn size(&self) -> [usize; 2] {
        let shape = self.tensor.shape();
        match self.layout {
            Layout::InputsFirst => [shape[0], shape[1]],
            Layout::InputsLast => [shape[1], shape[0]],
            Layout::Recurrent => [shape[2], shape[0] * shape[1]],
            Layout::Kernel => [shape[1..].iter().product(), shape[0]],
        }
    }

    /// Inputs of a block, where `block` are asked for.
    pub(crate) fn block(&self, block: Option<usize>) -> usize {
        let inputs = self.size()[0];
        match (self.layout, self.own_block.or(block)) {
            (Layout::Kernel, _) | (_, None | Some(0)) => inputs,
            (_, Some(block)) => block.min(inputs),
        }
    }

    /// The weights as [inputs, outputs].
    pub(crate) fn matrix(&self) -> Vec<f32> {
        let values = self.tensor.values::<f32>();
        match self.layout {
            Layout::InputsFirst => values.into_owned(),
            _ => transposed(&values, self.size()[1]),
        }
    }

    /// The tensor with other values, given as [inputs, outputs].
    pub(super) fn with(&self, matrix: &[f32]) -> Tensor {
        let shape = self.tensor.shape();
        match self.layout {
            Layout::InputsFirst => Tensor::new(shape, matrix),
            _ => Tensor::new(shape, &transposed(matrix, self.size()[0])),
        }
    }

    /// The weight rounded to the nearest of `bits`, or to f16, and made float again.
    pub(crate) fn rounded(&self, bits: u32, block: Option<usize>) -> Tensor {
        if bits == 16 {
            let half = self.tensor.converted(DType::F16);
            let back = half.and_then(|half| half.converted(DType::F32));
            return back.expect("floats convert to floats");
        }
        let levels = Levels { bits, has_zero_points: true };
        let [inputs, outputs] = self.size();
        let w = self.matrix();
        let weights = vec![1.0; inputs];
        let grid = Grid::of_least_error(&w, outputs, self.block(block), levels, &weights);
        self.with(&grid.dequantized(&grid.nearest(&w)))
    }
}

/// Every weight of a graph that can be quantized, in order of its first reader.
pub(crate) fn targets<'a>(
    graph: &'a Graph,
    links: &Links<'a>,
    context: &Context,
    bits: u32,
) -> Vec<Target<'a>> {
    let mut targets: Vec<Target> = Vec::new();
    let mut index_of: BTreeMap<(&str, Layout), usize> = BTreeMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        if context.exclude.matches(node.label()) {
            continue;
        }
        for (input, layout, name, tensor) in weights(links, node) {
            if context.exclude.matches(name) {
                continue;
            }
            let place = *index_of.entry((name, layout)).or_insert(targets.len());
            if place == targets.len() {
                let is_matrix_product = matches!(layout, Layout::InputsFirst | Layout::InputsLast);
                targets.push(Target {
                    name,
                    tensor,
                    bits,
                    own_block: None,
                    layout,
                    readers: Vec::new(),
                    is_matrix_product,
                    is_own: true,
                });
            }
            targets[place].readers.push((index, input));
        }
    }
    for target in &mut targets {
        target.is_own =
            links.uses(target.name).len() == target.readers.len() && !graph.is_output(target.name);
    }
    targets
}

/// The weights of a node: input, layout, name and content.
fn weights<'a>(links: &Links<'a>, node: &'a Node) -> Vec<(usize, Layout, &'a str, &'a Tensor)> {
    if let Some(weight) = weight_of(links, node) {
        let layout = match (node.is("Conv"), weight.axis) {
            (true, _) => Layout::Kernel,
            (false, 1) => Layout::InputsFirst,
            (false, _) => Layout::InputsLast,
        };
        return vec![(1, layout, weight.name, weight.tensor)];
    }
    let is_recurrent = ["GRU", "LSTM", "RNN"].iter().any(|op| node.is(op));
    let recurrent = |input: usize| {
        let name = node.input(input)?;
        let tensor = links.constant(name)?;
        let fits = tensor.dtype() == DType::F32 && tensor.rank() == 3 && tensor.element_count() > 0;
        fits.then_some((input, Layout::Recurrent, name, tensor))
    };
    [1, 2].into_iter().filter(|_| is_recurrent).filter_map(recurrent).collect()
}
