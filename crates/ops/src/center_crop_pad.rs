//! `CenterCropPad` (opset 18): every axis cut or padded with zeros to a size, the middle kept.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::moves::moved_gradient;
use crate::squeeze::resolve_axes;
use crate::words::{by_width, check_movable, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct CenterCropPad;

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
        let axes = axes(node.ints("axes")?, shape.len())?;
        let mut dims = shape.clone();
        match sizes.elements().filter(|sizes| sizes.len() == axes.len()) {
            Some(sizes) => {
                axes.iter().zip(sizes).for_each(|(&axis, size)| dims[axis] = size.clone());
            }
            None => axes.iter().for_each(|&axis| dims[axis] = Dim::Unknown),
        }
        Ok(vec![Fact::new(x.dtype, dims)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let given = node.ints("axes")?.map(<[i64]>::to_vec);
        Ok(Box::new(move |run: &mut Run| {
            let (x, sizes) = (run.input(0)?, run.input(1)?);
            check_movable(0, x)?;
            let axes = axes(given.as_deref(), x.rank())?;
            let sizes = sizes.to_i64().ok_or(OpError::DType { index: 1, found: sizes.dtype() })?;
            if sizes.len() != axes.len() {
                let expected = format!("{} sizes", axes.len());
                return Err(OpError::value("the shape", sizes, expected));
            }
            let mut shape = x.shape().to_vec();
            for (&axis, &size) in axes.iter().zip(&sizes) {
                shape[axis] = usize::try_from(size)
                    .map_err(|_| OpError::value("a size", size, "at least 0"))?;
            }
            if shape == x.shape() {
                return Ok(vec![x.clone()]);
            }
            let mut y = run.output(x.dtype(), &shape)?;
            by_width!(x, Word => {
                let out = words_mut::<Word>(&mut y);
                out.fill(0);
                copy_middle(out, words::<Word>(x), &shape, x.shape());
            });
            Ok(vec![y])
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let kernel = self.kernel(node, &[])?;
        moved_gradient(kernel, |index| index == 0, node.inputs.len())
    }
}

/// The axes in the order given; all when none are.
fn axes(given: Option<&[i64]>, rank: usize) -> Result<Vec<usize>, OpError> {
    let Some(given) = given else { return Ok((0..rank).collect()) };
    if resolve_axes(given, rank)?.len() != given.len() {
        return Err(OpError::value("axes", given, "different ones"));
    }
    given.iter().map(|&axis| Ok(resolve_axes(&[axis], rank)?[0])).collect()
}

/// Copies the middle that both shapes have.
fn copy_middle<T: Copy>(y: &mut [T], x: &[T], y_shape: &[usize], x_shape: &[usize]) {
    let common: Vec<usize> = y_shape.iter().zip(x_shape).map(|(&a, &b)| a.min(b)).collect();
    let Some((&width, outer)) = common.split_last() else {
        y.copy_from_slice(x);
        return;
    };
    if common.contains(&0) {
        return;
    }
    // Where a row of the middle begins in a shape.
    let start = |row: usize, shape: &[usize]| -> usize {
        let (mut rest, mut stride, mut at) = (row, 1, 0);
        for axis in (0..shape.len()).rev() {
            let margin = (shape[axis] - common[axis]) / 2;
            let index = if axis + 1 == shape.len() { 0 } else { rest % common[axis] };
            at += (margin + index) * stride;
            if axis + 1 < shape.len() {
                rest /= common[axis];
            }
            stride *= shape[axis];
        }
        at
    };
    for row in 0..outer.iter().product() {
        let (to, from) = (start(row, y_shape), start(row, x_shape));
        y[to..to + width].copy_from_slice(&x[from..from + width]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_axis_is_cut_while_the_other_is_padded() {
        let x: Vec<u8> = (1..=8).collect();
        let mut y = [0; 8];
        copy_middle(&mut y, &x, &[4, 2], &[2, 4]);
        assert_eq!(y, [0, 0, 2, 3, 6, 7, 0, 0]);
    }
}
