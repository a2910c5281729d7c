//! `ScatterElements` (opset 11; reductions from 16): y = x, then y[index[i][j]][j] ∘= u[i][j] for
//! axis 0, likewise for others; of any type. `Scatter` is its name before opset 11.

use attar_graph::Node;
use attar_tensor::Tensor;

use super::reduction::{Reduction, scatter_back};
use super::{axis_of, integers, integers_of, positions_along};
use crate::gradient::gradient;
use crate::words::{check_movable, for_every_type};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct ScatterElements;

impl Operator for ScatterElements {
    fn op_type(&self) -> &'static str {
        "ScatterElements"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        if let Some(rank) = x.rank() {
            axis_of(node, 0, rank)?;
        }
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        let reduction = Reduction::of(&node)?;
        let kernel = move |run: &mut Run| {
            let (x, indices, updates) = (run.input(0)?, run.input(1)?, run.input(2)?);
            check_movable(0, x)?;
            if updates.shape() != indices.shape() {
                return Err(OpError::shapes(indices.shape(), updates.shape()));
            }
            let axis = axis_of(&node, 0, x.rank())?;
            let picked = integers(run, 1)?;
            let positions = positions_along(x.shape(), axis, &picked, indices.shape())?;
            let updates = updates.clone();
            let mut y = run.inputs[0].take().expect("it was read above");
            reduction.scatter(&mut y, &updates, &positions, 1)?;
            Ok(vec![y])
        };
        // Strings and packed elements have no arithmetic.
        Ok(match reduction {
            Reduction::None => for_every_type(|index| index != 1, kernel),
            _ => Box::new(kernel),
        })
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let (node, reduction) = (node.clone(), Reduction::of(node)?);
        gradient(reduction.reads(), move |run| {
            let (shape, indices) = (run.shape(0), run.input(1)?);
            let axis = axis_of(&node, 0, shape.len())?;
            let picked = integers_of(indices, 1)?;
            let positions = positions_along(shape, axis, &picked, indices.shape())?;
            scatter_back(reduction, run, &positions, 1)
        })
    }
}
