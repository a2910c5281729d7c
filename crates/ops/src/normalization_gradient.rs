//! Gradients of the normalizations over rows: y = x̂·scale + bias, x̂ = (x − mean)/√(variance + ε) or
//! x/√(mean x² + ε). With g = dy·scale, dx = (g − mean g − x̂·mean(g·x̂))/√(variance + ε), without the
//! mean of g where none was taken off x; dscale = Σ dy·x̂, dbias = Σ dy.

use attar_tensor::{DType, Tensor};

use crate::broadcast::Loops;
use crate::gradient::sum_to;
use crate::kernels::{for_rows, gradient as kernels, normalize};
use crate::row_sums::change_rows;
use crate::{Backward, Flow, OpError, Pool};

/// What a row is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its deviation, once the mean is taken off.
    Deviation,
    RootMeanSquare,
}

/// A normalization of rows of the size of `scale`.
#[derive(Clone, Copy)]
struct Normalization<'a> {
    kind: Kind,
    scale: &'a [f32],
    epsilon: f32,
}

impl Normalization<'_> {
    /// Turns dy into dx; gives dscale and dbias.
    fn flow_back(&self, dy: &mut [f32], x: &[f32], pool: &Pool) -> [Tensor; 2] {
        let size = self.scale.len();
        let mut sums = pool.tensor(DType::F32, &[2 * size]);
        let loops = match self.kind {
            Kind::Deviation => kernels::layer_rows,
            Kind::RootMeanSquare => kernels::root_mean_square_rows,
        };
        change_rows(dy, size.max(1), sums.slice_mut::<f32>(), pool, |first, dy, sums| {
            let x = &x[first * size..][..dy.len()];
            loops(dy, x, self.scale, self.epsilon, sums);
        });
        let parts = sums.slice::<f32>().split_at(size);
        let parts = [parts.0, parts.1].map(|values| {
            let mut part = pool.tensor(DType::F32, &[size]);
            part.slice_mut::<f32>().copy_from_slice(values);
            part
        });
        pool.recycle(sums);
        parts
    }
}

/// A normalization whose scale and bias broadcast to x, for what [`Normalization`] is too narrow.
struct Broadcast<'a> {
    kind: Kind,
    row_size: usize,
    epsilon: f32,
    x: &'a Tensor,
    scale: &'a Tensor,
    bias_shape: Option<&'a [usize]>,
}

impl Broadcast<'_> {
    /// dx, dscale and dbias.
    fn flow_back(&self, mut dy: Tensor, pool: &Pool) -> (Tensor, Tensor, Option<Tensor>) {
        let ones = vec![1.0; self.row_size];
        let shape = self.x.shape();
        let copy = |tensor: &Tensor| {
            let mut copy = pool.tensor(DType::F32, shape);
            copy.slice_mut::<f32>().copy_from_slice(tensor.slice::<f32>());
            copy
        };
        let mut terms = copy(self.x);
        for_rows(terms.slice_mut::<f32>(), self.row_size, |_, rows| match self.kind {
            Kind::Deviation => normalize::layer_normalize_rows(rows, &ones, None, self.epsilon),
            Kind::RootMeanSquare => normalize::rms_normalize_rows(rows, &ones, self.epsilon),
        });
        let multiply = |(term, dy): (&mut f32, &f32)| *term *= dy;
        terms.slice_mut::<f32>().iter_mut().zip(dy.slice::<f32>()).for_each(multiply);
        let dscale = sum_to(terms, self.scale.shape(), pool);
        let dbias = self.bias_shape.map(|bias_shape| sum_to(copy(&dy), bias_shape, pool));
        let loops = Loops::new([self.scale.shape()], shape);
        let (inner, [stride], scale) =
            (loops.inner_size().max(1), loops.inner_strides(), self.scale.slice::<f32>());
        let mut rows = dy.slice_mut::<f32>().chunks_exact_mut(inner);
        loops.for_each_row(|[start]| {
            let row = rows.next().unwrap_or_default().iter_mut().enumerate();
            row.for_each(|(i, dy)| *dy *= scale[start + i * stride]);
        });
        let plain = Normalization { kind: self.kind, scale: &ones, epsilon: self.epsilon };
        let sums = plain.flow_back(dy.slice_mut::<f32>(), self.x.slice::<f32>(), pool);
        sums.into_iter().for_each(|sum| pool.recycle(sum));
        (dy, dscale, dbias)
    }
}

/// Which normalization, and where its vectors stand among the inputs.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    pub(crate) kind: Kind,
    pub(crate) epsilon: f32,
    pub(crate) scale: usize,
    pub(crate) bias: Option<usize>,
}

impl Form {
    /// Turns the gradient of the result into that of `x`, which was normalized over rows of the
    /// shape `row`; those of scale and bias go to `flows`. The node's backward run reads the scale.
    pub(crate) fn flow_back(
        &self,
        mut dy: Tensor,
        x: &Tensor,
        row: &[usize],
        flows: &mut [Option<Flow>],
        run: &Backward,
    ) -> Result<Tensor, OpError> {
        let (kind, epsilon, scale) = (self.kind, self.epsilon, run.input(self.scale)?);
        let row_size = row.iter().product();
        let fits = |shape: &[usize]| shape == row || shape == [row_size];
        let bias = self.bias.filter(|&bias| !run.shape(bias).is_empty());
        if fits(scale.shape()) && bias.is_none_or(|bias| fits(run.shape(bias))) {
            let plain = Normalization { kind, epsilon, scale: scale.slice::<f32>() };
            let sums = plain.flow_back(dy.slice_mut::<f32>(), x.slice::<f32>(), run.pool);
            let [dscale, dbias] = sums;
            place(flows, Some(self.scale), dscale, run);
            place(flows, bias, dbias, run);
            return Ok(dy);
        }
        let bias_shape = bias.map(|bias| run.shape(bias));
        let broadcast = Broadcast { kind, row_size, epsilon, x, scale, bias_shape };
        let (dx, dscale, dbias) = broadcast.flow_back(dy, run.pool);
        place(flows, Some(self.scale), dscale, run);
        if let Some(dbias) = dbias {
            place(flows, bias, dbias, run);
        }
        Ok(dx)
    }
}

/// Hands a gradient to the input that it is of, if one was asked for.
pub(crate) fn place(
    flows: &mut [Option<Flow>],
    index: Option<usize>,
    flow: Tensor,
    run: &Backward,
) {
    match index.filter(|&index| run.wants(index)) {
        Some(index) => flows[index] = Some(flow.reshaped(run.shape(index)).into()),
        None => run.pool.recycle(flow),
    }
}
