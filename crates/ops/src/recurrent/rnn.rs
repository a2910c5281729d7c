//! RNN (opset 7 and later; Elman, 1990): hₜ = f(x·Wᵀ + h·Rᵀ + b).

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use super::{Layer, cell, hidden_dim, infer, macs, training, unit_channels};
use crate::channels::{Channels, Tensors};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Training};

pub(crate) struct Rnn;

impl Operator for Rnn {
    fn op_type(&self) -> &'static str {
        "RNN"
    }

    fn since_opset(&self) -> i64 {
        7
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=6
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer(node, inputs, Layer::Rnn)
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        unit_channels(tensors)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        cell::kernel(node, constants, Layer::Rnn)
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        training::gradient(node, training, Layer::Rnn)
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], _: &[Fact]) -> Dim {
        macs(node, inputs, Layer::Rnn, &hidden_dim(inputs))
    }

    fn keeps_constant(&self, input: usize) -> bool {
        cell::WEIGHTS.contains(&input)
    }

    fn widens_half(&self) -> bool {
        true
    }
}
