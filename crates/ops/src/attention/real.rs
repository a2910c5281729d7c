//! The numbers that attention is computed in: f32 by the fast kernels, f64 by plain loops.

use attar_tensor::Element;

use crate::kernels::elementwise;
use crate::kernels::gemm::{self, Right, Strided};
use crate::kernels::softmax;

pub(crate) trait Real: Element + Default + PartialOrd {
    const NEG_INFINITY: Self;

    fn from_f64(value: f64) -> Self;

    /// out = a·b; no size is 0.
    fn product(out: &mut [Self], a: Strided<Self>, b: Strided<Self>);

    /// Softmax of scale·row + mask over each row, in place. The mask is one row for all.
    fn masked_softmax(rows: &mut [Self], size: usize, scale: f32, mask: Option<&[Self]>);

    fn scale(values: &mut [Self], factor: f32);

    /// x ← cap·tanh(x/cap).
    fn cap(values: &mut [Self], cap: f32);

    fn add(values: &mut [Self], addends: &[Self]);
}

impl Real for f32 {
    const NEG_INFINITY: Self = f32::NEG_INFINITY;

    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn product(out: &mut [Self], a: Strided<Self>, b: Strided<Self>) {
        gemm::matmul(out, a, Right::Strided(b), None);
    }

    fn masked_softmax(rows: &mut [Self], size: usize, scale: f32, mask: Option<&[Self]>) {
        if size > 0 {
            softmax::masked_softmax_rows(rows, size, scale, mask);
        }
    }

    fn scale(values: &mut [Self], factor: f32) {
        values.iter_mut().for_each(|value| *value *= factor);
    }

    fn cap(values: &mut [Self], cap: f32) {
        values.iter_mut().for_each(|value| *value /= cap);
        elementwise::tanh(values);
        Self::scale(values, cap);
    }

    fn add(values: &mut [Self], addends: &[Self]) {
        elementwise::add_assign(values, addends);
    }
}

impl Real for f64 {
    const NEG_INFINITY: Self = f64::NEG_INFINITY;

    fn from_f64(value: f64) -> Self {
        value
    }

    fn product(out: &mut [Self], a: Strided<Self>, b: Strided<Self>) {
        let ([depth, columns], [row, column]) = (b.size, b.strides);
        for (i, out) in out.chunks_exact_mut(columns).enumerate() {
            for (j, out) in out.iter_mut().enumerate() {
                let left = |k: usize| a.data[i * a.strides[0] + k * a.strides[1]];
                *out = (0..depth).map(|k| left(k) * b.data[k * row + j * column]).sum();
            }
        }
    }

    fn masked_softmax(rows: &mut [Self], size: usize, scale: f32, mask: Option<&[Self]>) {
        for row in rows.chunks_exact_mut(size.max(1)) {
            Self::scale(row, scale);
            if let Some(mask) = mask {
                Self::add(row, mask);
            }
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.iter_mut().for_each(|value| *value = (*value - max).exp());
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|value| *value /= sum);
        }
    }

    fn scale(values: &mut [Self], factor: f32) {
        values.iter_mut().for_each(|value| *value *= f64::from(factor));
    }

    fn cap(values: &mut [Self], cap: f32) {
        let cap = f64::from(cap);
        values.iter_mut().for_each(|value| *value = cap * (*value / cap).tanh());
    }

    fn add(values: &mut [Self], addends: &[Self]) {
        values.iter_mut().zip(addends).for_each(|(value, &addend)| *value += addend);
    }
}
