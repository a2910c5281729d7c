//! `Col2Im` (opset 18): blocks laid back over an image, overlapping elements summed; the adjoint of
//! gathering the patches of a convolution.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::fact::product;
use crate::geometry::{Axis, Geometry};
use crate::gradient::gradient;
use crate::kernels::for_rows;
use crate::real::{Real, by_real};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct Col2Im;

impl Operator for Col2Im {
    fn op_type(&self) -> &'static str {
        "Col2Im"
    }

    fn since_opset(&self) -> i64 {
        18
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    /// dx gathers dy: each element of a block from where it was laid.
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let node = node.clone();
        gradient(Reads::NOTHING.input(2), move |run| {
            let dy = run.take_gradient();
            let block = sizes_of(run.input(2)?, 2)?;
            let axes = Geometry::new(&node, &block)?.axes(&dy.shape()[2..])?;
            let (taps, count): (usize, usize) =
                (block.iter().product(), axes.iter().map(|axis| axis.output).product());
            let plane: usize = dy.shape()[2..].iter().product();
            let mut dx = run.tensor(run.shape(0));
            let values = dy.slice::<f32>();
            for_rows(dx.slice_mut::<f32>(), count, |first, rows| {
                for (index, row) in rows.chunks_exact_mut(count).enumerate() {
                    let (channel, tap) = ((first + index) / taps, (first + index) % taps);
                    let dy = &values[channel * plane..(channel + 1) * plane];
                    for (column, dx) in row.iter_mut().enumerate() {
                        *dx = place(&axes, tap, column).map_or(0.0, |at| dy[at]);
                    }
                }
            });
            run.pool.recycle(dy);
            Ok(vec![Some(dx.into())])
        })
    }

    fn widens_half(&self) -> bool {
        true
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, image, block) = (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
        let Some(image) = image.elements() else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let at = |axis: usize| {
            let dim = x.shape.as_ref().and_then(|shape| shape.get(axis).cloned());
            dim.unwrap_or(Dim::Unknown)
        };
        let channels = match block.elements() {
            Some(block) => at(1).floor_div(&product(block)),
            None => Dim::Unknown,
        };
        let dims = [at(0), channels].into_iter().chain(image.iter().cloned());
        Ok(vec![Fact::new(x.dtype, dims.collect())])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let (image, block) = (sizes(run, 1)?, sizes(run, 2)?);
            let axes = Geometry::new(&node, &block)?.axes(&image)?;
            let outputs: Vec<usize> = axes.iter().map(|axis| axis.output).collect();
            let fail = || OpError::shapes(x.shape(), &block);
            let (Some(taps), Some(count)) =
                (attar_tensor::element_count(&block), attar_tensor::element_count(&outputs))
            else {
                return Err(fail());
            };
            if x.rank() != 3 || !x.shape()[1].is_multiple_of(taps) || x.shape()[2] != count {
                return Err(fail());
            }
            let mut shape = vec![x.shape()[0], x.shape()[1] / taps];
            shape.extend(&image);
            let mut y = run.output(x.dtype(), &shape)?;
            by_real!(x, 0, T => {
                lay_back(y.slice_mut::<T>(), x.slice::<T>(), &axes, taps, count);
                Ok(vec![y])
            })
        }))
    }
}

/// Sizes of at least 1, one for each axis of the image.
fn sizes(run: &Run, index: usize) -> Result<Vec<usize>, OpError> {
    sizes_of(run.typed::<i64>(index)?, index)
}

fn sizes_of(tensor: &Tensor, index: usize) -> Result<Vec<usize>, OpError> {
    let found = tensor.values::<i64>().into_owned();
    let sizes: Option<Vec<usize>> =
        found.iter().map(|&size| usize::try_from(size).ok().filter(|&size| size > 0)).collect();
    let sizes = sizes.filter(|sizes| !sizes.is_empty());
    sizes.ok_or_else(|| OpError::value(&format!("input {index}"), found, "sizes of at least 1"))
}

fn lay_back<T: Real>(y: &mut [T], x: &[T], axes: &[Axis], taps: usize, count: usize) {
    let plane: usize = axes.iter().map(|axis| axis.input).product();
    for_rows(y, plane, |first, planes| {
        for (index, out) in planes.chunks_exact_mut(plane).enumerate() {
            out.fill(T::ZERO);
            let at = (first + index) * taps * count;
            let blocks = &x[at..at + taps * count];
            for (tap, row) in blocks.chunks_exact(count).enumerate() {
                for (column, &value) in row.iter().enumerate() {
                    if let Some(at) = place(axes, tap, column) {
                        out[at] += value;
                    }
                }
            }
        }
    });
}

/// Where an element of a block lies in the image.
fn place(axes: &[Axis], tap: usize, column: usize) -> Option<usize> {
    let (mut tap, mut column, mut stride, mut at) = (tap, column, 1, 0);
    for axis in axes.iter().rev() {
        at += axis.source(column % axis.output, tap % axis.kernel)? * stride;
        tap /= axis.kernel;
        column /= axis.output;
        stride *= axis.input;
    }
    Some(at)
}
