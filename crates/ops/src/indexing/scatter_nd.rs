//! `ScatterND` (opset 11; reductions from 16): y = x, then the blocks that the indices point at
//! are replaced by, or reduced with, the updates; of any type.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use super::reduction::{Reduction, scatter_back};
use super::{blocks, integers, integers_of};
use crate::fact::resolve_axis;
use crate::gradient::gradient;
use crate::words::{check_movable, for_every_type};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct ScatterND;

/// A shape vector stays followed where single elements at known places are replaced.
fn replaced(x: &Fact, indices: &Fact, updates: &Fact) -> Option<Vec<Dim>> {
    let (mut elements, updates) = (x.elements()?.to_vec(), updates.elements()?);
    let indices = match indices.known_elements() {
        Some(indices) => indices,
        // [n, 1] is no vector, but its constant is known.
        None => indices.constant.as_ref()?.to_i64()?,
    };
    if x.rank() != Some(1) || indices.len() != updates.len() {
        return None;
    }
    for (index, update) in indices.into_iter().zip(updates) {
        let place = resolve_axis(index, elements.len())?;
        elements[place] = update.clone();
    }
    Some(elements)
}

impl Operator for ScatterND {
    fn op_type(&self) -> &'static str {
        "ScatterND"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let mut fact = x.with_dtype(x.dtype);
        let others = (inputs.get(1).copied().flatten(), inputs.get(2).copied().flatten());
        if let ((Some(indices), Some(updates)), Reduction::None) = (others, Reduction::of(node)?)
            && let Some(elements) = replaced(x, indices, updates)
        {
            fact.set_elements(elements);
        }
        Ok(vec![fact])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let reduction = Reduction::of(node)?;
        let kernel = move |run: &mut Run| {
            let (x, indices, updates) = (run.input(0)?, run.input(1)?, run.input(2)?);
            check_movable(0, x)?;
            let picked = integers(run, 1)?;
            let found = blocks(x.shape(), 0, &picked, indices.shape())?;
            if updates.element_count() != found.starts.len() * found.size {
                return Err(OpError::shapes(indices.shape(), updates.shape()));
            }
            let updates = updates.clone();
            let mut y = run.inputs[0].take().expect("it was read above");
            reduction.scatter(&mut y, &updates, &found.starts, found.size)?;
            Ok(vec![y])
        };
        // Strings and packed elements have no arithmetic.
        Ok(match reduction {
            Reduction::None => for_every_type(|index| index != 1, kernel),
            _ => Box::new(kernel),
        })
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let reduction = Reduction::of(node)?;
        gradient(reduction.reads(), move |run| {
            let (shape, indices) = (run.shape(0), run.input(1)?);
            let found = blocks(shape, 0, &integers_of(indices, 1)?, indices.shape())?;
            scatter_back(reduction, run, &found.starts, found.size)
        })
    }
}
