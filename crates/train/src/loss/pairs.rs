//! Rows that belong together: the halves of one output, or two outputs.

use attar_tensor::{DType, Tensor};

use super::{LossRun, Measured, mismatch};
use crate::TrainError;

/// Groups of rows of f32: row i of every group belongs to row i of the others.
pub(super) struct Pairs<'a> {
    groups: Vec<&'a [f32]>,
    pub(super) count: usize,
    pub(super) width: usize,
    shapes: Vec<&'a [usize]>,
}

impl<'a> Pairs<'a> {
    /// The first output in `group_count` equal parts, or, with as many outputs, one of each.
    pub(super) fn of(
        run: &LossRun<'a>,
        loss: &'static str,
        group_count: usize,
    ) -> Result<Self, TrainError> {
        let is_split = run.outputs.len() != group_count;
        let outputs = if is_split { &run.outputs[..1.min(run.outputs.len())] } else { run.outputs };
        let mut groups = Vec::new();
        for output in outputs {
            if output.dtype() != DType::F32 {
                return Err(mismatch(loss, output.dtype(), "an output of f32"));
            }
            let parts = if is_split { group_count } else { 1 };
            let rows = output.shape().first().copied().unwrap_or(0);
            if rows == 0 || !rows.is_multiple_of(parts) {
                let expected = format!("rows in {parts} equal parts");
                return Err(mismatch(loss, format!("{:?}", output.shape()), expected));
            }
            groups.extend(output.slice::<f32>().chunks_exact(output.element_count() / parts));
        }
        let first = outputs.first().ok_or_else(|| mismatch(loss, "no output", "one"))?;
        let rows = first.shape()[0];
        let count = if is_split { rows / group_count } else { rows };
        if groups.iter().any(|group| group.len() != groups[0].len()) {
            return Err(mismatch(loss, "outputs of two sizes", "outputs of one"));
        }
        let width = groups[0].len() / count;
        Ok(Self { groups, count, width, shapes: outputs.iter().map(Tensor::shape).collect() })
    }

    pub(super) fn group(&self, group: usize) -> &'a [f32] {
        self.groups[group]
    }

    pub(super) fn row(&self, group: usize, index: usize) -> &'a [f32] {
        &self.groups[group][index * self.width..][..self.width]
    }

    /// Zeros for the gradients, all groups after one another.
    pub(super) fn gradient(&self) -> Vec<f32> {
        vec![0.0; self.groups.len() * self.groups[0].len()]
    }

    /// Where a row stands in the gradients.
    pub(super) fn place(&self, group: usize, index: usize) -> usize {
        group * self.groups[0].len() + index * self.width
    }

    pub(super) fn measured(&self, loss: f64, gradient: &[f32]) -> Measured {
        let size = gradient.len() / self.shapes.len();
        let parts = self.shapes.iter().zip(gradient.chunks_exact(size.max(1)));
        let gradients = parts.map(|(shape, part)| Some(Tensor::new(shape, part))).collect();
        Measured { loss, gradients }
    }
}

/// cos(a, b) with its gradients: (b/|b| − cos·a/|a|)/|a|, and the same the other way round. Rows of
/// zeros have a cosine of 0 and no gradient.
pub(super) struct Cosine {
    pub(super) value: f64,
    norms: [f64; 2],
}

/// Below it a row counts as zeros.
const NORM_MIN: f64 = 1e-12;

impl Cosine {
    pub(super) fn of(a: &[f32], b: &[f32]) -> Self {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let norms = [dot(a, a).sqrt(), dot(b, b).sqrt()];
        let is_zero = norms[0] < NORM_MIN || norms[1] < NORM_MIN;
        let value = if is_zero { 0.0 } else { dot(a, b) / (norms[0] * norms[1]) };
        Self { value, norms }
    }

    /// Adds factor · ∂cos/∂a to `gradient`.
    pub(super) fn flow(&self, a: &[f32], b: &[f32], factor: f64, gradient: &mut [f32]) {
        self.flow_to(a, b, factor, self.norms, gradient);
    }

    /// Adds factor · ∂cos/∂b to `gradient`.
    pub(super) fn flow_back(&self, a: &[f32], b: &[f32], factor: f64, gradient: &mut [f32]) {
        self.flow_to(b, a, factor, [self.norms[1], self.norms[0]], gradient);
    }

    fn flow_to(&self, a: &[f32], b: &[f32], factor: f64, norms: [f64; 2], gradient: &mut [f32]) {
        if norms[0] < NORM_MIN || norms[1] < NORM_MIN {
            return;
        }
        let (to_b, to_a) = (factor / (norms[0] * norms[1]), factor * self.value / norms[0].powi(2));
        for ((sum, &a), &b) in gradient.iter_mut().zip(a).zip(b) {
            *sum += (to_b * f64::from(b) - to_a * f64::from(a)) as f32;
        }
    }
}
