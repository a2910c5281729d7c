//! `SplitToSequence` and `ConcatFromSequence` (opset 11 and later): a tensor cut along an axis into
//! a sequence, and joined again.

use attar_graph::Node;
use attar_tensor::Tensor;

use super::{over_data, unknown};
use crate::concat::Concat;
use crate::fact::resolve_axis;
use crate::indexing::axis_of;
use crate::split::parts_of;
use crate::words::for_every_type;
use crate::{Body, DataKernel, DataRun, Datum, OpError, Operator, Run};

over_data!(SplitToSequence, 11, 1..=2, unknown, split);

over_data!(ConcatFromSequence, 11, 1..=1, unknown, concat);

/// Sizes of the parts of an axis: ones, all of one size but the last, or those listed.
fn sizes(split: Option<&Tensor>, size: usize) -> Result<Vec<usize>, OpError> {
    let Some(split) = split else { return Ok(vec![1; size]) };
    let values = split.to_i64().ok_or(OpError::DType { index: 1, found: split.dtype() })?;
    let error = || OpError::value("split", &values, format!("sizes that add up to {size}"));
    let sizes: Option<Vec<usize>> = values.iter().map(|&v| usize::try_from(v).ok()).collect();
    let sizes = sizes.ok_or_else(error)?;
    if split.rank() == 0 {
        let each = sizes.first().copied().filter(|&each| each > 0).ok_or_else(error)?;
        return Ok((0..size).step_by(each).map(|start| each.min(size - start)).collect());
    }
    let sum = sizes.iter().try_fold(0_usize, |sum, &part| sum.checked_add(part));
    if sum == Some(size) { Ok(sizes) } else { Err(error()) }
}

#[allow(clippy::needless_pass_by_value)] // as the others
fn split(node: &Node, _: Vec<Body>) -> Result<Box<dyn DataKernel>, OpError> {
    let node = node.clone();
    let drops_axis = node.input(1).is_none() && node.int_or("keepdims", 1)? == 0;
    let cut = for_every_type(
        |index| index == 0,
        move |run: &mut Run| {
            let x = run.input(0)?;
            let axis = axis_of(&node, 0, x.rank())?;
            let sizes = sizes(run.optional(1), x.shape()[axis])?;
            let mut parts = parts_of(run, axis, &sizes)?;
            if drops_axis {
                for part in &mut parts {
                    let mut shape = part.shape().to_vec();
                    shape.remove(axis);
                    *part = part.reshaped(&shape);
                }
            }
            Ok(parts)
        },
    );
    Ok(Box::new(move |run: &mut DataRun| {
        let sizes = run.optional(1).map(|_| run.tensor(1).cloned()).transpose()?;
        let inputs = vec![Some(run.tensor(0)?.clone()), sizes];
        Ok(vec![Datum::Sequence(cut.run(&mut Run { inputs, pool: run.pool })?)])
    }))
}

#[allow(clippy::needless_pass_by_value)]
fn concat(node: &Node, _: Vec<Body>) -> Result<Box<dyn DataKernel>, OpError> {
    let joined = Concat.kernel(node, &[])?;
    let new_axis = node.int_or("new_axis", 0)? != 0;
    let axis = node.int_or("axis", 0)?;
    Ok(Box::new(move |run: &mut DataRun| {
        let mut tensors = run.sequence(0)?.to_vec();
        if new_axis {
            for tensor in &mut tensors {
                let rank = tensor.rank() + 1;
                let error = || OpError::value("axis", axis, format!("below rank {rank}"));
                let axis = resolve_axis(axis, rank).ok_or_else(error)?;
                let mut shape = tensor.shape().to_vec();
                shape.insert(axis, 1);
                *tensor = tensor.reshaped(&shape);
            }
        }
        let inputs = tensors.into_iter().map(Some).collect();
        let outputs = joined.run(&mut Run { inputs, pool: run.pool })?;
        Ok(outputs.into_iter().map(Datum::Tensor).collect())
    }))
}
