//! `CenterCropPad` (opset 18 and later): axes cropped or padded with zeros, evenly at both ends, to
//! the sizes given.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use super::pad::{Mode, padded};
use crate::fact::resolve_axis;
use crate::indexing::integers;
use crate::words::for_every_type;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct CenterCropPad;

/// The axes that are changed, in the order of their sizes.
fn axes(node: &Node, rank: usize, sizes: usize) -> Result<Vec<usize>, OpError> {
    let axes = match node.ints("axes")? {
        Some(axes) => axes.iter().map(|&axis| resolve_axis(axis, rank)).collect(),
        None => Some((0..rank).collect::<Vec<_>>()),
    };
    let error = || OpError::value("the count of sizes", sizes, "one for each axis");
    axes.filter(|axes| axes.len() == sizes).ok_or_else(error)
}

impl Operator for CenterCropPad {
    fn op_type(&self) -> &'static str {
        "CenterCropPad"
    }

    fn since_opset(&self) -> i64 {
        18
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, sizes) = (required(inputs, 0)?, required(inputs, 1)?);
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let Some(sizes) = sizes.elements() else {
            return Ok(vec![Fact::new(x.dtype, vec![Dim::Unknown; shape.len()])]);
        };
        let mut shape = shape.clone();
        for (axis, size) in axes(node, shape.len(), sizes.len())?.into_iter().zip(sizes) {
            shape[axis] = size.clone();
        }
        Ok(vec![Fact::new(x.dtype, shape)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(for_every_type(
            |index| index == 0,
            move |run: &mut Run| {
                let shape = run.input(0)?.shape();
                let sizes = integers(run, 1)?;
                let mut pads = vec![[0, 0]; shape.len()];
                for (axis, &size) in axes(&node, shape.len(), sizes.len())?.into_iter().zip(&sizes)
                {
                    if size < 0 {
                        return Err(OpError::value("a size", size, "0 or more"));
                    }
                    let missing = size - shape[axis] as i64;
                    // Both halves round toward zero; what is odd goes to the end.
                    pads[axis] = [missing / 2, missing - missing / 2];
                }
                // Padding reads input 2 for its constant, and there is none.
                Ok(vec![padded(run, &pads, Mode::Constant)?])
            },
        ))
    }
}
