//! Compress (opset 9 and later): the slices along an axis, or the elements, where a condition
//! holds; of any type.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use super::axis_of;
use crate::gather::pick;
use crate::moves::moved_gradient;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct Compress;

impl Operator for Compress {
    fn op_type(&self) -> &'static str {
        "Compress"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, condition) = (required(inputs, 0)?, required(inputs, 1)?);
        let holds = condition.known_elements();
        let count =
            holds.map_or(Dim::Unknown, |all| all.iter().filter(|&&c| c != 0).count().into());
        if node.int("axis")?.is_none() {
            return Ok(vec![Fact::new(x.dtype, vec![count])]);
        }
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let mut shape = shape.clone();
        let axis = axis_of(node, 0, shape.len())?;
        shape[axis] = count;
        Ok(vec![Fact::new(x.dtype, shape)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(for_every_type(
            |index| index == 0,
            move |run: &mut Run| {
                let (x, condition) = (run.input(0)?, run.typed::<u8>(1)?);
                check_movable(0, x)?;
                let x = match node.int("axis")? {
                    Some(_) => x.clone(),
                    None => x.reshaped(&[x.element_count()]),
                };
                let axis = axis_of(&node, 0, x.rank())?;
                let holds = condition.slice::<u8>().iter().enumerate().filter(|(_, c)| **c != 0);
                let picked: Vec<usize> = holds.map(|(index, _)| index).collect();
                let size = x.shape()[axis];
                if picked.last().is_some_and(|&last| last >= size) {
                    return Err(OpError::shapes(x.shape(), condition.shape()));
                }
                let mut shape = x.shape().to_vec();
                shape[axis] = picked.len();
                let inner: usize = shape[axis + 1..].iter().product();
                let mut y = run.pool.declared(x.dtype(), &shape)?;
                by_width!(x, Word => {
                    pick::<Word>(words_mut(&mut y), words(&x), size, inner, &picked);
                });
                Ok(vec![y])
            },
        ))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let kernel = self.kernel(node, &[])?;
        moved_gradient(kernel, |index| index == 0, node.inputs.len())
    }
}
