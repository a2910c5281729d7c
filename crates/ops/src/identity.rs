//! Identity.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::channels::{Channels, Tensors};
use crate::gradient::reshape_gradient;
use crate::{
    Body, DataKernel, DataRun, Fact, Gradient, Kernel, OpError, Operator, OverData, Run, Training,
    required,
};

pub(crate) struct Identity;

impl Operator for Identity {
    fn op_type(&self) -> &'static str {
        "Identity"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![required(inputs, 0)?.clone()])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::like_input(tensors, &[]))
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| Ok(vec![run.input(0)?.clone()])))
    }

    fn over_data(&self) -> Option<&dyn OverData> {
        Some(self)
    }

    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        reshape_gradient()
    }
}

impl OverData for Identity {
    fn data_kernel(&self, _: &Node, _: Vec<Body>) -> Result<Box<dyn DataKernel>, OpError> {
        Ok(Box::new(|run: &mut DataRun| Ok(vec![run.input(0)?.clone()])))
    }
}
