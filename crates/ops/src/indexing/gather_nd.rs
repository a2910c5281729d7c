//! `GatherND` (opset 11; `batch_dims` from 12): blocks of a tensor picked by their first
//! coordinates; of any type.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use super::{blocks, integers};
use crate::moves::moved_gradient;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct GatherND;

fn batch_dims(node: &Node) -> Result<usize, OpError> {
    let count = node.int_or("batch_dims", 0)?;
    usize::try_from(count).map_err(|_| OpError::value("batch_dims", count, "0 or more"))
}

/// Shape of the indices without their last axis, then what they leave of `x`.
fn output_shape<T: Clone>(
    x: &[T],
    indices: &[T],
    depth: usize,
    batch_dims: usize,
) -> Option<Vec<T>> {
    let rest = x.get(batch_dims.checked_add(depth)?..)?;
    Some([&indices[..indices.len() - 1], rest].concat())
}

impl Operator for GatherND {
    fn op_type(&self) -> &'static str {
        "GatherND"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, indices) = (required(inputs, 0)?, required(inputs, 1)?);
        let batch_dims = batch_dims(node)?;
        let (Some(shape), Some(indices)) = (&x.shape, &indices.shape) else {
            return Ok(vec![Fact::unranked(x.dtype)]);
        };
        let Some(depth) = indices.last().and_then(Dim::known) else {
            return Ok(vec![Fact::unranked(x.dtype)]);
        };
        let dims = output_shape(shape, indices, depth.max(0) as usize, batch_dims);
        let error = || OpError::value("the depth of the indices", depth, "the rank at most");
        Ok(vec![Fact::new(x.dtype, dims.ok_or_else(error)?)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let batch_dims = batch_dims(node)?;
        Ok(for_every_type(
            |index| index == 0,
            move |run: &mut Run| {
                let (x, indices) = (run.input(0)?, run.input(1)?);
                check_movable(0, x)?;
                let picked = integers(run, 1)?;
                let found = blocks(x.shape(), batch_dims, &picked, indices.shape())?;
                let depth = *indices.shape().last().expect("`blocks` found a last axis");
                let shape = output_shape(x.shape(), indices.shape(), depth, batch_dims);
                let shape = shape.expect("`blocks` checked the depth");
                let mut y = run.pool.declared(x.dtype(), &shape)?;
                if found.size > 0 {
                    by_width!(x, Word => {
                        let x = words::<Word>(x);
                        let to = words_mut::<Word>(&mut y).chunks_exact_mut(found.size);
                        to.zip(&found.starts).for_each(|(to, &start)| {
                            to.copy_from_slice(&x[start..start + found.size]);
                        });
                    });
                }
                Ok(vec![y])
            },
        ))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let kernel = self.kernel(node, &[])?;
        moved_gradient(kernel, |index| index == 0, node.inputs.len())
    }
}
