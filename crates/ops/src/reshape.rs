//! Reshape (opset 5 and later): 0 copies a size (unless `allowzero`), −1 takes what is left.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::channels::{Channels, Place, Port, Tensors, output};
use crate::fact::product;
use crate::gradient::reshape_gradient;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct Reshape;

/// The target shape with 0 and −1 resolved.
fn resolve(shape: &[usize], target: &[i64], allow_zero: bool) -> Result<Vec<usize>, OpError> {
    let error = || OpError::Shapes { a: format!("{shape:?}"), b: format!("{target:?}") };
    let mut resolved = Vec::with_capacity(target.len());
    let mut open = None;
    for (axis, &size) in target.iter().enumerate() {
        resolved.push(match size {
            0 if !allow_zero => *shape.get(axis).ok_or_else(error)?,
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            size => usize::try_from(size).map_err(|_| error())?,
        });
    }
    let total: usize = shape.iter().product();
    let given = attar_tensor::element_count(&resolved).ok_or_else(error)?;
    if let Some(axis) = open {
        resolved[axis] = total.checked_div(given).ok_or_else(error)?;
    }
    if attar_tensor::element_count(&resolved) == Some(total) { Ok(resolved) } else { Err(error()) }
}

impl Operator for Reshape {
    fn op_type(&self) -> &'static str {
        "Reshape"
    }

    fn since_opset(&self) -> i64 {
        5
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, target) = (required(inputs, 0)?, required(inputs, 1)?);
        let Some(elements) = target.elements() else {
            let rank = target.shape.as_ref().and_then(|shape| shape.first()?.known());
            return Ok(vec![match rank.and_then(|rank| usize::try_from(rank).ok()) {
                Some(rank) if rank < 64 => Fact::new(x.dtype, vec![Dim::Unknown; rank]),
                _ => Fact::unranked(x.dtype),
            }]);
        };
        let allow_zero = node.int_or("allowzero", 0)? != 0;
        let mut shape = Vec::with_capacity(elements.len());
        let mut open = None;
        for (axis, element) in elements.iter().enumerate() {
            shape.push(match element.known() {
                Some(0) if !allow_zero => match &x.shape {
                    Some(shape) => shape.get(axis).cloned().unwrap_or(Dim::Unknown),
                    None => Dim::Unknown,
                },
                Some(-1) => {
                    open = Some(axis);
                    Dim::Known(1)
                }
                _ => element.clone(),
            });
        }
        if let Some(axis) = open {
            shape[axis] = x.element_count().floor_div(&product(&shape));
        }
        let mut fact = Fact::new(x.dtype, shape);
        // A shape tensor stays followed when it only gains or loses an axis of 1.
        if let (Some(elements), true) = (x.elements(), fact.rank().is_some_and(|rank| rank <= 1)) {
            fact.set_elements(elements.to_vec());
        }
        Ok(vec![fact])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        let mut channels = Channels::reshaped(tensors);
        for axis in 0..tensors.rank(Port::Output(0))? {
            channels.held(tensors, Place::InputElement(1, axis), output(0, axis));
        }
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let allow_zero = node.int_or("allowzero", 0)? != 0;
        Ok(Box::new(move |run: &mut Run| {
            let target = run.typed::<i64>(1)?.values::<i64>();
            let x = run.input(0)?;
            Ok(vec![x.reshaped(&resolve(x.shape(), &target, allow_zero)?)])
        }))
    }

    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        reshape_gradient()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_copies_and_minus_one_takes_the_rest() {
        assert_eq!(resolve(&[2, 3, 8], &[0, -1, 4], false).unwrap(), [2, 6, 4]);
        assert_eq!(resolve(&[0, 3], &[0, 3], true).unwrap(), [0, 3]);
    }

    #[test]
    fn a_target_of_another_size_is_refused() {
        let error = resolve(&[2, 3], &[4, 2], false).unwrap_err();
        assert_eq!(error.to_string(), "shapes [2, 3] and [4, 2] do not fit together");
    }
}
