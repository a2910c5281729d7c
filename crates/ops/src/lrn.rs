//! `LRN` (opset 1): y = x / (bias + α/size · Σ x²)^β, the sum over `size` neighbouring channels
//! (Krizhevsky et al., 2012).

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::gradient::gradient;
use crate::kernels::{for_rows, normalize};
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required,
};

pub(crate) struct Lrn;

impl Operator for Lrn {
    fn op_type(&self) -> &'static str {
        "LRN"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn widens_half(&self) -> bool {
        true
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let response = Response::new(node)?;
        Ok(Box::new(move |run: &mut Run| response.run(run)))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let response = Response::new(node)?;
        gradient(Reads::NOTHING.input(0), move |run| response.back(run))
    }
}

struct Response {
    size: usize,
    alpha: f32,
    beta: f32,
    bias: f32,
}

impl Response {
    fn new(node: &Node) -> Result<Self, OpError> {
        let found = node.int_or("size", 0)?;
        let size = usize::try_from(found).ok().filter(|&size| size > 0);
        Ok(Self {
            size: size.ok_or_else(|| OpError::value("size", found, "at least 1"))?,
            alpha: node.float_or("alpha", 1e-4)?,
            beta: node.float_or("beta", 0.75)?,
            bias: node.float_or("bias", 1.0)?,
        })
    }

    /// With d = bias + α/size · Σ x²:
    /// dx[i] = dy[i]·d[i]^−β − 2αβ/size · x[i] · Σ over the j that i is neighbour of of
    /// dy[j]·x[j]·d[j]^(−β−1).
    fn back(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let dy = run.take_gradient();
        let x = run.input(0)?;
        let channels = x.shape()[1];
        let inner: usize = x.shape()[2..].iter().product();
        let (flow, values) = (dy.slice::<f32>(), x.slice::<f32>());
        let mut weights = run.tensor(x.shape());
        let mut dx = run.tensor(x.shape());
        let factor = self.alpha / self.size as f32;
        let sums = weights.slice_mut::<f32>();
        for_rows(sums, inner, |first, rows| {
            for (index, out) in rows.chunks_exact_mut(inner).enumerate() {
                out.fill(0.0);
                for plane in self.neighbours(first + index, channels) {
                    normalize::add_squares(out, &values[plane * inner..(plane + 1) * inner]);
                }
            }
        });
        let sums = weights.slice::<f32>();
        for_rows(dx.slice_mut::<f32>(), inner, |first, rows| {
            for (index, out) in rows.chunks_exact_mut(inner).enumerate() {
                let at = first + index;
                let readers = self.readers(at, channels);
                for (i, dx) in out.iter_mut().enumerate() {
                    let divisor = |plane: usize| self.bias + factor * sums[plane * inner + i];
                    let term = |plane: usize| {
                        let place = plane * inner + i;
                        flow[place] * values[place] * divisor(plane).powf(-self.beta - 1.0)
                    };
                    let others: f32 = readers.clone().map(term).sum();
                    let place = at * inner + i;
                    *dx = flow[place] * divisor(at).powf(-self.beta)
                        - 2.0 * factor * self.beta * values[place] * others;
                }
            }
        });
        run.pool.recycle(weights);
        run.pool.recycle(dy);
        Ok(vec![Some(dx.into())])
    }

    /// The planes that have a plane among their neighbours.
    fn readers(&self, plane: usize, channels: usize) -> std::ops::Range<usize> {
        let (batch, channel) = (plane / channels, plane % channels);
        let before = (self.size - 1) / 2;
        let behind = self.size - 1 - before;
        let start = channel.saturating_sub(behind);
        let end = channel.saturating_add(before).saturating_add(1).min(channels);
        batch * channels + start..batch * channels + end
    }

    fn run(&self, run: &Run) -> Result<Vec<Tensor>, OpError> {
        let x = run.input(0)?;
        if x.rank() < 2 {
            return Err(OpError::value("the input", x.shape(), "batch and channels"));
        }
        let channels = x.shape()[1];
        let inner: usize = x.shape()[2..].iter().product();
        let mut y = run.pool.tensor(x.dtype(), x.shape());
        match x.dtype() {
            DType::F32 => {
                let values = x.slice::<f32>();
                for_rows(y.slice_mut::<f32>(), inner, |first, rows| {
                    for (index, out) in rows.chunks_exact_mut(inner).enumerate() {
                        let planes = self.neighbours(first + index, channels);
                        out.fill(0.0);
                        for plane in planes {
                            let x = &values[plane * inner..(plane + 1) * inner];
                            normalize::add_squares(out, x);
                        }
                        let at = first + index;
                        self.divide(out, &values[at * inner..(at + 1) * inner]);
                    }
                });
            }
            DType::F64 => {
                let values = x.slice::<f64>();
                for (index, out) in y.slice_mut::<f64>().iter_mut().enumerate() {
                    let (plane, at) = (index / inner, index % inner);
                    let planes = self.neighbours(plane, channels);
                    let sum: f64 = planes.map(|plane| values[plane * inner + at].powi(2)).sum();
                    let [alpha, beta, bias] = [self.alpha, self.beta, self.bias].map(f64::from);
                    *out = values[index] / (bias + alpha / self.size as f64 * sum).powf(beta);
                }
            }
            found => return Err(OpError::DType { index: 0, found }),
        }
        Ok(vec![y])
    }

    /// The planes of [batch · channels] whose squares a plane is divided by.
    fn neighbours(&self, plane: usize, channels: usize) -> std::ops::Range<usize> {
        let (batch, channel) = (plane / channels, plane % channels);
        let before = (self.size - 1) / 2;
        let behind = self.size - 1 - before;
        let start = channel.saturating_sub(before);
        let end = channel.saturating_add(behind).saturating_add(1).min(channels);
        batch * channels + start..batch * channels + end
    }

    fn divide(&self, sums: &mut [f32], x: &[f32]) {
        let factor = self.alpha / self.size as f32;
        // β = ¾ is the paper's, and two roots.
        #[allow(clippy::float_cmp)] // exactly the default
        if self.beta == 0.75 {
            return normalize::divide_by_three_quarters(sums, x, self.bias, factor);
        }
        for (sum, &x) in sums.iter_mut().zip(x) {
            *sum = x / (self.bias + factor * *sum).powf(self.beta);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_end_at_the_first_and_last_channel() {
        let response = |size| Response { size, alpha: 1e-4, beta: 0.75, bias: 1.0 };
        assert_eq!(response(3).neighbours(0, 4), 0..2);
        assert_eq!(response(4).neighbours(5, 4), 4..8);
        assert_eq!(response(usize::MAX).neighbours(6, 4), 4..8);
    }
}
