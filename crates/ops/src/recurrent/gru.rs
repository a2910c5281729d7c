//! GRU (opset 7 and later; Cho et al., 2014, arXiv:1406.1078), gates in the order z, r, h:
//!
//! z, r = f(x·Wᵀ + h·Rᵀ + b); hₜ = (1 − z)⊙h̃ + z⊙h, where h̃ is g(x·Wᵀ + (r⊙h)·Rᵀ + b), or, with
//! `linear_before_reset`, g(x·Wᵀ + b + r⊙(h·Rᵀ + b′)).

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use super::{Layer, cell, hidden_dim, infer, macs, training, unit_channels};
use crate::channels::{Channels, Tensors};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Training};

pub(crate) struct Gru;

impl Operator for Gru {
    fn op_type(&self) -> &'static str {
        "GRU"
    }

    fn since_opset(&self) -> i64 {
        7
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=6
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer(node, inputs, Layer::Gru)
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        unit_channels(tensors)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        cell::kernel(node, constants, Layer::Gru)
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        training::gradient(node, training, Layer::Gru)
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], _: &[Fact]) -> Dim {
        macs(node, inputs, Layer::Gru, &hidden_dim(inputs))
    }

    fn keeps_constant(&self, input: usize) -> bool {
        cell::WEIGHTS.contains(&input)
    }

    fn widens_half(&self) -> bool {
        true
    }
}
