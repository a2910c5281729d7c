//! Squeeze: removes axes of size 1. Axes are an attribute up to opset 12, an input from 13.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::channels::{Channels, Tensors};
use crate::fact::resolve_axis;
use crate::gradient::reshape_gradient;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct Squeeze;

/// The axes as the node gives them: by attribute, by input, or not at all.
pub(crate) fn axes_of(node: &Node, input: Option<Vec<i64>>) -> Result<Option<Vec<i64>>, OpError> {
    match input {
        Some(axes) => Ok(Some(axes)),
        None => Ok(node.ints("axes")?.map(<[i64]>::to_vec)),
    }
}

/// Axes as sorted indices below `rank`.
pub(crate) fn resolve_axes(axes: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
    let mut resolved = axes
        .iter()
        .map(|&axis| {
            resolve_axis(axis, rank)
                .ok_or_else(|| OpError::value("axis", axis, format!("below rank {rank}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    resolved.sort_unstable();
    resolved.dedup();
    Ok(resolved)
}

impl Operator for Squeeze {
    fn op_type(&self) -> &'static str {
        "Squeeze"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let given = inputs.get(1).copied().flatten();
        let axes = axes_of(node, given.and_then(Fact::known_elements))?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let removed = match axes {
            Some(axes) => resolve_axes(&axes, shape.len())?,
            None if given.is_some() || shape.iter().any(|dim| !dim.is_known()) => {
                return Ok(vec![Fact::unranked(x.dtype)]);
            }
            None => (0..shape.len()).filter(|&axis| shape[axis] == Dim::Known(1)).collect(),
        };
        let kept = (0..shape.len()).filter(|axis| !removed.contains(axis));
        let mut fact = Fact::new(x.dtype, kept.map(|axis| shape[axis].clone()).collect());
        if let Some(elements) = x.elements() {
            fact.set_elements(elements.to_vec());
        }
        Ok(vec![fact])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::reshaped(tensors))
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let given = run.optional(1).and_then(Tensor::to_i64);
            let removed = match axes_of(&node, given)? {
                Some(axes) => resolve_axes(&axes, x.rank())?,
                None => (0..x.rank()).filter(|&axis| x.shape()[axis] == 1).collect(),
            };
            if let Some(&axis) = removed.iter().find(|&&axis| x.shape()[axis] != 1) {
                return Err(OpError::value("the squeezed axis", x.shape()[axis], "1"));
            }
            let kept = (0..x.rank()).filter(|axis| !removed.contains(axis));
            let shape: Vec<usize> = kept.map(|axis| x.shape()[axis]).collect();
            Ok(vec![x.reshaped(&shape)])
        }))
    }

    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        reshape_gradient()
    }
}
