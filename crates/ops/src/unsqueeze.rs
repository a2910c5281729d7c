//! Unsqueeze: inserts axes of size 1. Axes are an attribute up to opset 12, an input from 13.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::channels::{Channels, Tensors};
use crate::gradient::reshape_gradient;
use crate::squeeze::{axes_of, resolve_axes};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct Unsqueeze;

/// `shape` with `one` inserted at `axes`, which count in the result.
fn inserted<T: Clone>(shape: &[T], axes: &[i64], one: &T) -> Result<Vec<T>, OpError> {
    let rank = shape.len() + axes.len();
    let axes = resolve_axes(axes, rank)?;
    let mut rest = shape.iter();
    let result: Vec<T> = (0..rank)
        .filter_map(|axis| if axes.contains(&axis) { Some(one) } else { rest.next() })
        .cloned()
        .collect();
    if result.len() == rank {
        return Ok(result);
    }
    Err(OpError::value("axes", axes, "different axes"))
}

impl Operator for Unsqueeze {
    fn op_type(&self) -> &'static str {
        "Unsqueeze"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let given = inputs.get(1).copied().flatten().and_then(Fact::known_elements);
        let (Some(shape), Some(axes)) = (&x.shape, axes_of(node, given)?) else {
            return Ok(vec![Fact::unranked(x.dtype)]);
        };
        let mut fact = Fact::new(x.dtype, inserted(shape, &axes, &Dim::Known(1))?);
        if let (Some(elements), Some(1)) = (x.elements(), fact.rank()) {
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
            let axes = axes_of(&node, run.optional(1).and_then(Tensor::to_i64))?
                .ok_or_else(|| OpError::value("axes", "absent", "an input or attribute"))?;
            Ok(vec![x.reshaped(&inserted(x.shape(), &axes, &1)?)])
        }))
    }

    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        reshape_gradient()
    }
}
