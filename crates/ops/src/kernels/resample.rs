//! Weighted sums of rows, and of elements of a row, for resampling.

use super::math::fma;
use super::vectorized;

vectorized! {
    /// out = Σ weight · row; all of one length, at least one row.
    pub(crate) fn weigh_rows<FMA>(out: &mut [f32], rows: &[&[f32]], weights: &[f32]) {
        match (rows, weights) {
            ([a, b], &[wa, wb]) => {
                for ((out, &a), &b) in out.iter_mut().zip(*a).zip(*b) {
                    *out = fma::<FMA>(b, wb, a * wa);
                }
            }
            ([a, b, c, d], &[wa, wb, wc, wd]) => {
                let values = out.iter_mut().zip(*a).zip(*b).zip(*c).zip(*d);
                for ((((out, &a), &b), &c), &d) in values {
                    *out = fma::<FMA>(d, wd, fma::<FMA>(c, wc, fma::<FMA>(b, wb, a * wa)));
                }
            }
            _ => {
                out.fill(0.0);
                for (row, &weight) in rows.iter().zip(weights) {
                    for (out, &value) in out.iter_mut().zip(*row) {
                        *out = fma::<FMA>(value, weight, *out);
                    }
                }
            }
        }
    }

    /// out[o] = Σ weight · x[index] over the `count` taps of o.
    pub(crate) fn gather_taps<FMA>(
        out: &mut [f32],
        x: &[f32],
        indices: &[usize],
        weights: &[f32],
        count: usize,
    ) {
        if count == 2 {
            let (indices, _) = indices.as_chunks::<2>();
            let (weights, _) = weights.as_chunks::<2>();
            for ((out, &[a, b]), &[wa, wb]) in out.iter_mut().zip(indices).zip(weights) {
                *out = fma::<FMA>(x[b], wb, x[a] * wa);
            }
            return;
        }
        let taps = indices.chunks_exact(count).zip(weights.chunks_exact(count));
        for (out, (indices, weights)) in out.iter_mut().zip(taps) {
            let mut sum = 0.0;
            for (&index, &weight) in indices.iter().zip(weights) {
                sum = fma::<FMA>(x[index], weight, sum);
            }
            *out = sum;
        }
    }

    /// out += x · weight.
    pub(crate) fn add_scaled<FMA>(out: &mut [f32], x: &[f32], weight: f32) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = fma::<FMA>(x, weight, *out);
        }
    }

    /// x[index] += weight · out[o] over the `count` taps of every o.
    pub(crate) fn scatter_taps<FMA>(
        x: &mut [f32],
        out: &[f32],
        indices: &[usize],
        weights: &[f32],
        count: usize,
    ) {
        let taps = indices.chunks_exact(count).zip(weights.chunks_exact(count));
        for (&out, (indices, weights)) in out.iter().zip(taps) {
            for (&index, &weight) in indices.iter().zip(weights) {
                x[index] = fma::<FMA>(out, weight, x[index]);
            }
        }
    }
}
