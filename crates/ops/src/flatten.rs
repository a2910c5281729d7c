//! Flatten (opset 1 and later): all axes before `axis` into one, all others into a second.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::channels::{Channels, Tensors};
use crate::fact::product;
use crate::gradient::reshape_gradient;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct Flatten;

/// The split point; unlike other axes it may equal the rank.
fn split(node: &Node, rank: usize) -> Result<usize, OpError> {
    let axis = node.int_or("axis", 1)?;
    let resolved = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(resolved)
        .ok()
        .filter(|&at| at <= rank)
        .ok_or_else(|| OpError::value("axis", axis, format!("at most {rank}")))
}

impl Operator for Flatten {
    fn op_type(&self) -> &'static str {
        "Flatten"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![match &x.shape {
            Some(shape) => {
                let (left, right) = shape.split_at(split(node, shape.len())?);
                Fact::new(x.dtype, vec![product(left), product(right)])
            }
            None => Fact::new(x.dtype, vec![attar_graph::Dim::Unknown; 2]),
        }])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::reshaped(tensors))
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let (left, right) = x.shape().split_at(split(&node, x.rank())?);
            Ok(vec![x.reshaped(&[left.iter().product(), right.iter().product()])])
        }))
    }

    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        reshape_gradient()
    }
}
