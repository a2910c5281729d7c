//! `SpaceToDepth` and `DepthToSpace` (opset 1; `mode` from 28 and 11): blocks of an image to channels and
//! back.
//!
//! With block size b, `[n, c, h·b, w·b]` becomes `[n, b·b·c, h, w]` in the order (row, column,
//! channel), which is DCR; CRD has the order (channel, row, column).

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::gradient::gradient;
use crate::transpose::{inverse, permute};
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required,
};

pub(crate) struct SpaceToDepth;

pub(crate) struct DepthToSpace;

fn block_size(node: &Node) -> Result<usize, OpError> {
    let size = node.int_or("blocksize", 0)?;
    let error = || OpError::value("blocksize", size, "1 to 65535");
    usize::try_from(size).ok().filter(|size| (1..1 << 16).contains(size)).ok_or_else(error)
}

/// Whether channels come before the places in a block: CRD.
fn is_channels_first(node: &Node) -> Result<bool, OpError> {
    match node.text("mode")? {
        None | Some("DCR") => Ok(false),
        Some("CRD") => Ok(true),
        Some(other) => Err(OpError::value("mode", other, "DCR or CRD")),
    }
}

/// The four sizes of an image.
fn image<T>(shape: &[T]) -> Result<&[T; 4], OpError> {
    shape.try_into().map_err(|_| OpError::value("the rank of the input", shape.len(), "4"))
}

/// `size / divisor`, which must leave no rest.
fn divided(size: usize, divisor: usize) -> Result<usize, OpError> {
    if size.is_multiple_of(divisor) {
        return Ok(size / divisor);
    }
    Err(OpError::value("a size", size, format!("a multiple of {divisor}")))
}

/// Views `x` as `view`, permutes its axes, and views the result as `shape`.
fn rearrange(
    run: &mut Run,
    view: [usize; 6],
    perm: [usize; 6],
    shape: [usize; 4],
) -> Result<Vec<Tensor>, OpError> {
    let x = run.input(0)?;
    check_movable(0, x)?;
    let mut y = run.pool.tensor(x.dtype(), &shape);
    by_width!(x, Word => permute::<Word>(words_mut(&mut y), words(x), &view, &perm));
    Ok(vec![y])
}

/// The reverse of [`rearrange`], of a gradient.
fn rearrange_back(run: &mut Backward, view: [usize; 6], perm: [usize; 6]) -> Vec<Option<Flow>> {
    let dy = run.take_gradient();
    let mut dx = run.tensor(run.shape(0));
    let seen = perm.map(|axis| view[axis]);
    permute(dx.slice_mut::<f32>(), dy.slice::<f32>(), &seen, &inverse(&perm));
    run.pool.recycle(dy);
    vec![Some(dx.into())]
}

impl Operator for SpaceToDepth {
    fn op_type(&self) -> &'static str {
        "SpaceToDepth"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let b = Dim::from(block_size(node)?);
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let [n, c, h, w] = image(shape)?;
        let dims = vec![n.clone(), c * &(&b * &b), h.floor_div(&b), w.floor_div(&b)];
        Ok(vec![Fact::new(x.dtype, dims)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let b = block_size(node)?;
        let channels_first = is_channels_first(node)?;
        Ok(for_every_type(
            |index| index == 0,
            move |run: &mut Run| {
                let &[n, c, h, w] = image(run.input(0)?.shape())?;
                let (h, w) = (divided(h, b)?, divided(w, b)?);
                let perm = if channels_first { [0, 1, 3, 5, 2, 4] } else { [0, 3, 5, 1, 2, 4] };
                rearrange(run, [n, c, h, b, w, b], perm, [n, c * b * b, h, w])
            },
        ))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let (b, channels_first) = (block_size(node)?, is_channels_first(node)?);
        gradient(Reads::NOTHING, move |run| {
            let &[n, c, h, w] = image(run.shape(0))?;
            let perm = if channels_first { [0, 1, 3, 5, 2, 4] } else { [0, 3, 5, 1, 2, 4] };
            Ok(rearrange_back(run, [n, c, h / b, b, w / b, b], perm))
        })
    }
}

impl Operator for DepthToSpace {
    fn op_type(&self) -> &'static str {
        "DepthToSpace"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let b = Dim::from(block_size(node)?);
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let [n, c, h, w] = image(shape)?;
        let dims = vec![n.clone(), c.floor_div(&(&b * &b)), h * &b, w * &b];
        Ok(vec![Fact::new(x.dtype, dims)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let b = block_size(node)?;
        let channels_first = is_channels_first(node)?;
        Ok(for_every_type(
            |index| index == 0,
            move |run: &mut Run| {
                let &[n, c, h, w] = image(run.input(0)?.shape())?;
                let c = divided(c, b * b)?;
                let shape = [n, c, h * b, w * b];
                if channels_first {
                    rearrange(run, [n, c, b, b, h, w], [0, 1, 4, 2, 5, 3], shape)
                } else {
                    rearrange(run, [n, b, b, c, h, w], [0, 3, 4, 1, 5, 2], shape)
                }
            },
        ))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let (b, channels_first) = (block_size(node)?, is_channels_first(node)?);
        gradient(Reads::NOTHING, move |run| {
            let &[n, c, h, w] = image(run.shape(0))?;
            let c = c / (b * b);
            if channels_first {
                Ok(rearrange_back(run, [n, c, b, b, h, w], [0, 1, 4, 2, 5, 3]))
            } else {
                Ok(rearrange_back(run, [n, b, b, c, h, w], [0, 3, 4, 1, 5, 2]))
            }
        })
    }
}
