//! `MaxUnpool` (opset 9): zeros, with every x where its index says; indices are those that
//! `MaxPool` gives.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::geometry::list;
use crate::gradient::gradient;
use crate::words::{by_width, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct MaxUnpool;

impl Operator for MaxUnpool {
    fn op_type(&self) -> &'static str {
        "MaxUnpool"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let unpooling = Unpooling::new(node)?;
        if let Some(given) = inputs.get(2).copied().flatten() {
            return Ok(vec![match given.elements() {
                Some(dims) => Fact::new(x.dtype, dims.to_vec()),
                None => match x.rank() {
                    Some(rank) => Fact::new(x.dtype, vec![Dim::Unknown; rank]),
                    None => Fact::unranked(x.dtype),
                },
            }]);
        }
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let spatial = unpooling.kernel.len();
        if shape.len() != spatial + 2 {
            let text = |rank: usize| format!("of rank {rank}");
            return Err(OpError::Shapes { a: text(shape.len()), b: text(spatial + 2) });
        }
        let dims = (0..spatial).map(|axis| {
            let (kernel, stride, pads) = unpooling.along(axis);
            let Some(grown) = kernel.checked_sub(pads).and_then(|size| size.checked_sub(stride))
            else {
                return Dim::Unknown;
            };
            &(&shape[axis + 2] * &Dim::Known(stride)) + &Dim::Known(grown)
        });
        Ok(vec![Fact::new(x.dtype, shape[..2].iter().cloned().chain(dims).collect())])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let unpooling = Unpooling::new(node)?;
        Ok(Box::new(move |run: &mut Run| unpooling.run(run)))
    }

    /// dx is dy where x was put; of several in one place, the last one's.
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let unpooling = Unpooling::new(node)?;
        gradient(Reads::NOTHING.input(1), move |run| {
            let mut dy = run.take_gradient();
            let inner = unpooling.shape(run.shape(0))?;
            let shape = dy.shape().to_vec();
            let mut dx = run.tensor(run.shape(0));
            let (dy_values, indices) = (dy.slice_mut::<f32>(), run.input(1)?.slice::<i64>());
            for (dx, &index) in dx.slice_mut::<f32>().iter_mut().zip(indices).rev() {
                *dx = std::mem::take(&mut dy_values[placed(index as usize, &inner, &shape)]);
            }
            run.pool.recycle(dy);
            Ok(vec![Some(dx.into())])
        })
    }
}

struct Unpooling {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    pads: Vec<usize>,
}

impl Unpooling {
    fn new(node: &Node) -> Result<Self, OpError> {
        let given = node.ints("kernel_shape")?.unwrap_or(&[]);
        let spatial = given.len();
        if spatial == 0 {
            return Err(OpError::value("kernel_shape", given, "a size for each axis"));
        }
        Ok(Self {
            kernel: list(node, "kernel_shape", 1, spatial)?,
            strides: list(node, "strides", 1, spatial)?,
            pads: list(node, "pads", 0, spatial * 2)?,
        })
    }

    /// Kernel, stride and padding of an axis.
    fn along(&self, axis: usize) -> (i64, i64, i64) {
        let pads = self.pads[axis].saturating_add(self.pads[self.kernel.len() + axis]);
        let signed = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
        (signed(self.kernel[axis]), signed(self.strides[axis]), signed(pads))
    }

    /// The shape that the pooled input had.
    fn shape(&self, x: &[usize]) -> Result<Vec<usize>, OpError> {
        if x.len() != self.kernel.len() + 2 {
            return Err(OpError::shapes(x, &self.kernel));
        }
        let size = |axis: usize| {
            let (kernel, stride, pads) = self.along(axis);
            let steps = i64::try_from(x[axis + 2]).ok()?.checked_sub(1)?.checked_mul(stride)?;
            usize::try_from(steps.checked_add(kernel)?.checked_sub(pads)?).ok()
        };
        let sizes: Option<Vec<usize>> = (0..self.kernel.len()).map(size).collect();
        let sizes = sizes.ok_or_else(|| OpError::shapes(x, &self.kernel))?;
        Ok([&x[..2], &sizes].concat())
    }

    fn run(&self, run: &Run) -> Result<Vec<Tensor>, OpError> {
        let (x, indices) = (run.input(0)?, run.typed::<i64>(1)?);
        if x.shape() != indices.shape() {
            return Err(OpError::shapes(x.shape(), indices.shape()));
        }
        if !x.dtype().is_float() {
            return Err(OpError::DType { index: 0, found: x.dtype() });
        }
        let inner = self.shape(x.shape())?;
        let shape = match run.optional(2) {
            Some(given) => output_shape(given, &inner)?,
            None => inner.clone(),
        };
        let mut y = run.output(x.dtype(), &shape)?;
        let count = attar_tensor::element_count(&inner)
            .ok_or_else(|| OpError::value("the unpooled shape", &inner, "an addressable size"))?;
        by_width!(x, Word => {
            let out = words_mut::<Word>(&mut y);
            out.fill(0);
            for (&value, &index) in words::<Word>(x).iter().zip(indices.slice::<i64>()) {
                let at = usize::try_from(index).ok().filter(|&at| at < count);
                let at = at.ok_or_else(|| {
                    OpError::value("an index", index, format!("below {count}"))
                })?;
                out[placed(at, &inner, &shape)] = value;
            }
        });
        Ok(vec![y])
    }
}

fn output_shape(given: &Tensor, inner: &[usize]) -> Result<Vec<usize>, OpError> {
    let sizes = given.to_i64().ok_or(OpError::DType { index: 2, found: given.dtype() })?;
    let shape: Option<Vec<usize>> = sizes.iter().map(|&size| usize::try_from(size).ok()).collect();
    shape
        .filter(|shape| shape.len() == inner.len())
        .filter(|shape| shape.iter().zip(inner).all(|(size, inner)| size >= inner))
        .ok_or_else(|| OpError::value("output_shape", &sizes, format!("at least {inner:?}")))
}

/// Where an element of `inner` stands in the larger `shape`.
fn placed(at: usize, inner: &[usize], shape: &[usize]) -> usize {
    let (mut rest, mut stride, mut place) = (at, 1, 0);
    for (&size, &outer) in inner.iter().zip(shape).rev() {
        place += rest % size * stride;
        rest /= size;
        stride *= outer;
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_keeps_its_place_in_a_larger_shape() {
        assert_eq!(placed(5, &[1, 1, 4, 4], &[1, 1, 5, 5]), 6);
        assert_eq!(placed(15, &[1, 1, 4, 4], &[1, 1, 5, 5]), 18);
        assert_eq!(placed(7, &[1, 1, 4, 4], &[1, 1, 4, 4]), 7);
    }

    #[test]
    fn a_shape_that_is_smaller_or_not_one_is_refused() {
        assert!(output_shape(&Tensor::new(&[2], &[4_i64, 3]), &[4, 4]).is_err());
        assert!(output_shape(&Tensor::new(&[1], &[4_i64]), &[4, 4]).is_err());
        assert!(output_shape(&Tensor::new(&[2], &[-1_i64, 4]), &[4, 4]).is_err());
    }
}
