//! Transpose (opset 1 and later): permutes axes; reverses them by default.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::channels::{Channels, Port, Tensors, input, output};
use crate::gradient::gradient;
use crate::kernels::for_rows;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Pool, Reads, Run, Training, required};

pub(crate) struct Transpose;

fn permutation(node: &Node, rank: usize) -> Result<Vec<usize>, OpError> {
    let Some(perm) = node.ints("perm")? else { return Ok((0..rank).rev().collect()) };
    let mut seen = vec![false; rank];
    let axes: Option<Vec<usize>> = perm
        .iter()
        .map(|&axis| {
            let axis = usize::try_from(axis).ok().filter(|&axis| axis < rank && !seen[axis])?;
            seen[axis] = true;
            Some(axis)
        })
        .collect();
    axes.filter(|axes| axes.len() == rank)
        .ok_or_else(|| OpError::value("perm", perm, format!("a permutation of {rank} axes")))
}

impl Operator for Transpose {
    fn op_type(&self) -> &'static str {
        "Transpose"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![match &x.shape {
            Some(shape) => {
                let perm = permutation(node, shape.len())?;
                Fact::new(x.dtype, perm.iter().map(|&axis| shape[axis].clone()).collect())
            }
            None => Fact::unranked(x.dtype),
        }])
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        let mut channels = Channels::default();
        let permutation = permutation(node, tensors.rank(Port::Input(0))?).ok()?;
        for (to, from) in permutation.into_iter().enumerate() {
            channels.tie(tensors, input(0, from), output(0, to));
        }
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(for_every_type(
            |index| index == 0,
            move |run: &mut Run| {
                let x = run.input(0)?;
                check_movable(0, x)?;
                let perm = permutation(&node, x.rank())?;
                Ok(vec![permuted(run.pool, x, &perm)])
            },
        ))
    }

    /// dx is dy with its axes put back.
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let node = node.clone();
        gradient(Reads::NOTHING, move |run| {
            let dy = run.take_gradient();
            let perm = inverse(&permutation(&node, dy.rank())?);
            let dx = permuted(run.pool, &dy, &perm);
            run.pool.recycle(dy);
            Ok(vec![Some(dx.into())])
        })
    }
}

/// `x` with its axes permuted; of elements of whole bytes.
fn permuted(pool: &Pool, x: &Tensor, perm: &[usize]) -> Tensor {
    let shape: Vec<usize> = perm.iter().map(|&axis| x.shape()[axis]).collect();
    // Moving only axes of size 1 leaves the order of elements as it is.
    let moved: Vec<usize> = perm.iter().copied().filter(|&axis| x.shape()[axis] != 1).collect();
    if moved.is_sorted() {
        return x.reshaped(&shape);
    }
    let mut y = pool.tensor(x.dtype(), &shape);
    by_width!(x, Word => permute::<Word>(words_mut(&mut y), words(x), x.shape(), perm));
    y
}

/// The permutation that undoes `perm`.
pub(crate) fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
    inverse
}

/// Writes `x` of `shape` with its axes permuted.
pub(crate) fn permute<T: Copy + Send + Sync>(
    y: &mut [T],
    x: &[T],
    shape: &[usize],
    perm: &[usize],
) {
    if y.is_empty() {
        return;
    }
    let mut strides = vec![1; shape.len()];
    for axis in (0..shape.len() - 1).rev() {
        strides[axis] = strides[axis + 1] * shape[axis + 1];
    }
    // Axes that stay neighbours move as one; then at most the innermost needs a strided copy.
    let mut sizes: Vec<usize> = Vec::new();
    let mut steps: Vec<usize> = Vec::new();
    for &axis in perm.iter().filter(|&&axis| shape[axis] != 1) {
        match (sizes.last_mut(), steps.last_mut()) {
            (Some(size), Some(step)) if *step == strides[axis] * shape[axis] => {
                *size *= shape[axis];
                *step = strides[axis];
            }
            _ => {
                sizes.push(shape[axis]);
                steps.push(strides[axis]);
            }
        }
    }
    let Some((&inner, &step)) = sizes.last().zip(steps.last()) else {
        y.copy_from_slice(x);
        return;
    };
    let outer = sizes.len() - 1;
    for_rows(y, inner, |first_row, rows| {
        for (index, row) in rows.chunks_exact_mut(inner).enumerate() {
            let mut rest = first_row + index;
            let mut start = 0;
            for axis in (0..outer).rev() {
                start += rest % sizes[axis] * steps[axis];
                rest /= sizes[axis];
            }
            if step == 1 {
                row.copy_from_slice(&x[start..start + inner]);
            } else {
                row.iter_mut().zip(x[start..].iter().step_by(step)).for_each(|(y, &x)| *y = x);
            }
        }
    });
}
