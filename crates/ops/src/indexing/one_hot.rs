//! `OneHot` (opset 9; negative indices from 11): a new axis of `depth`, `on` at the index and `off`
//! elsewhere; `off` throughout where the index is outside −depth..depth.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::fact::resolve_axis;
use crate::moves::moved_gradient;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct OneHot;

fn axis_of(node: &Node, rank: usize) -> Result<usize, OpError> {
    super::axis_of(node, -1, rank + 1)
}

/// Numbers as integers, floats cut off.
fn whole(tensor: &Tensor, index: usize) -> Result<Vec<i64>, OpError> {
    let converted = tensor.converted(DType::I64);
    let error = OpError::DType { index, found: tensor.dtype() };
    converted.map(|tensor| tensor.slice::<i64>().to_vec()).map_err(|_| error)
}

impl Operator for OneHot {
    fn op_type(&self) -> &'static str {
        "OneHot"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (indices, depth, values) =
            (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
        let Some(shape) = &indices.shape else { return Ok(vec![Fact::unranked(values.dtype)]) };
        let element = depth.elements().and_then(<[Dim]>::first).cloned();
        // A depth may be a float, which is not followed.
        let constant = || {
            let depth = *whole(depth.constant.as_ref()?, 1).ok()?.first()?;
            Some(Dim::Known(depth.max(0)))
        };
        let mut shape = shape.clone();
        let axis = axis_of(node, shape.len())?;
        shape.insert(axis, element.or_else(constant).unwrap_or(Dim::Unknown));
        Ok(vec![Fact::new(values.dtype, shape)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(for_every_type(
            |index| index == 2,
            move |run: &mut Run| {
                let (indices, depth, values) = (run.input(0)?, run.input(1)?, run.input(2)?);
                check_movable(2, values)?;
                if values.element_count() != 2 {
                    return Err(OpError::value("the shape of `values`", values.shape(), "[2]"));
                }
                let depth = match whole(depth, 1)?.as_slice() {
                    &[depth] if depth > 0 => depth as usize,
                    found => return Err(OpError::value("depth", found, "one number above 0")),
                };
                let axis = axis_of(&node, indices.rank())?;
                let mut shape = indices.shape().to_vec();
                shape.insert(axis, depth);
                let inner: usize = indices.shape()[axis..].iter().product();
                let hot = whole(indices, 0)?;
                let mut y = run.pool.declared(values.dtype(), &shape)?;
                by_width!(values, Word => {
                    let (y, values) = (words_mut::<Word>(&mut y), words::<Word>(values));
                    y.fill(values[0]);
                    for (place, &index) in hot.iter().enumerate() {
                        if let Some(index) = resolve_axis(index, depth) {
                            y[(place / inner * depth + index) * inner + place % inner] = values[1];
                        }
                    }
                });
                Ok(vec![y])
            },
        ))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let kernel = self.kernel(node, &[])?;
        moved_gradient(kernel, |index| index == 2, node.inputs.len())
    }
}
