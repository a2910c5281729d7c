//! Einsum backward: the gradient of an operand is the sum of products of dY and the other operands
//! over every index but its own. What the operand alone was summed over gets the same everywhere;
//! of an operand that was read along its diagonal, the rest gets zero.

use std::collections::BTreeMap;

use attar_tensor::Tensor;

use super::contracted;
use super::contraction::Operand;
use super::equation::Equation;
use crate::indexing::strides_of;
use crate::{Backward, Flow, OpError};

pub(super) fn flow_back(
    run: &mut Backward,
    equation: &Equation,
) -> Result<Vec<Option<Flow>>, OpError> {
    let dy = run.take_gradient();
    let count = run.shapes.len();
    let tensors = (0..count).map(|i| run.input(i)).collect::<Result<Vec<_>, _>>()?;
    let ranks: Vec<usize> = tensors.iter().map(|x| x.rank()).collect();
    let indices = equation.indices(&ranks)?;
    let sizes = indices.sizes(&tensors)?;
    let mut flows = vec![None; count];
    for (own, flow) in flows.iter_mut().enumerate().filter(|(own, _)| run.wants(*own)) {
        let mut operands = vec![Operand::new(run.pool, &dy, &indices.output, &sizes)?];
        for (index, x) in tensors.iter().enumerate().filter(|(index, _)| *index != own) {
            operands.push(Operand::new(run.pool, x, &indices.inputs[index], &sizes)?);
        }
        let kept = kept_indices(&indices.inputs[own], tensors[own].shape(), &operands, &sizes);
        let sum = contracted(operands, &kept, run.pool)?;
        *flow = Some(spread(&sum, &kept, &indices.inputs[own], run.shape(own), run).into());
        run.pool.recycle(sum);
    }
    run.pool.recycle(dy);
    Ok(flows)
}

/// The indices of an operand that the others have too, each once, without those that it repeats.
fn kept_indices(
    own: &[u32],
    shape: &[usize],
    others: &[Operand],
    sizes: &BTreeMap<u32, usize>,
) -> Vec<u32> {
    let mut kept: Vec<u32> = Vec::new();
    for (index, &size) in own.iter().zip(shape) {
        let is_repeated = size == 1 && sizes[index] != 1;
        let is_shared = others.iter().any(|other| other.indices.contains(index));
        if is_shared && !is_repeated && !kept.contains(index) {
            kept.push(*index);
        }
    }
    kept
}

/// `sum`, whose axes are `kept`, over the axes of an operand.
fn spread(sum: &Tensor, kept: &[u32], own: &[u32], shape: &[usize], run: &Backward) -> Tensor {
    let strides = strides_of(sum.shape());
    let step = |index: &u32| kept.iter().position(|other| other == index).map_or(0, |i| strides[i]);
    let steps: Vec<usize> = own.iter().map(step).collect();
    let first: Vec<usize> = (own.iter().enumerate())
        .map(|(axis, index)| own.iter().position(|other| other == index).unwrap_or(axis))
        .collect();
    let mut dx = run.tensor(shape);
    let values = sum.slice::<f32>();
    let mut place = vec![0; shape.len()];
    for dx in dx.slice_mut::<f32>() {
        let mut at = 0;
        let mut is_read = true;
        for axis in 0..shape.len() {
            is_read &= place[axis] == place[first[axis]];
            if first[axis] == axis {
                at += place[axis] * steps[axis];
            }
        }
        *dx = if is_read { values[at] } else { 0.0 };
        for axis in (0..shape.len()).rev() {
            place[axis] += 1;
            if place[axis] < shape[axis] {
                break;
            }
            place[axis] = 0;
        }
    }
    dx
}
