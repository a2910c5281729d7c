//! `GatherElements` (opset 11 and later): y[i][j] = x[index[i][j]][j] for axis 0, likewise for
//! others; of any type.

use attar_graph::Node;
use attar_tensor::Tensor;

use super::{axis_of, integers, positions_along};
use crate::moves::moved_gradient;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct GatherElements;

impl Operator for GatherElements {
    fn op_type(&self) -> &'static str {
        "GatherElements"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, indices) = (required(inputs, 0)?, required(inputs, 1)?);
        if let Some(rank) = x.rank() {
            axis_of(node, 0, rank)?;
        }
        Ok(vec![indices.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(for_every_type(
            |index| index == 0,
            move |run: &mut Run| {
                let (x, indices) = (run.input(0)?, run.input(1)?);
                check_movable(0, x)?;
                let axis = axis_of(&node, 0, x.rank())?;
                let picked = integers(run, 1)?;
                let positions = positions_along(x.shape(), axis, &picked, indices.shape())?;
                let mut y = run.pool.declared(x.dtype(), indices.shape())?;
                by_width!(x, Word => {
                    let x = words::<Word>(x);
                    let pairs = words_mut::<Word>(&mut y).iter_mut().zip(&positions);
                    pairs.for_each(|(y, &position)| *y = x[position]);
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
