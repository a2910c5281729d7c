//! LSTM (opset 7 and later; Hochreiter and Schmidhuber, 1997), gates in the order i, o, f, c:
//!
//! i, o, f = f(x·Wᵀ + h·Rᵀ + b, with c seen through peepholes); cₜ = f⊙c + i⊙g(x·Wᵀ + h·Rᵀ + b);
//! hₜ = o⊙h(cₜ).

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use super::{Layer, cell, hidden_dim, infer, macs, training, unit_channels};
use crate::channels::{Channels, Tensors};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Training};

pub(crate) struct Lstm;

impl Operator for Lstm {
    fn op_type(&self) -> &'static str {
        "LSTM"
    }

    fn since_opset(&self) -> i64 {
        7
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=8
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer(node, inputs, Layer::Lstm)
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        unit_channels(tensors)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        cell::kernel(node, constants, Layer::Lstm)
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        training::gradient(node, training, Layer::Lstm)
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], _: &[Fact]) -> Dim {
        macs(node, inputs, Layer::Lstm, &hidden_dim(inputs))
    }

    fn keeps_constant(&self, input: usize) -> bool {
        cell::WEIGHTS.contains(&input)
    }

    fn widens_half(&self) -> bool {
        true
    }
}
