//! `LayerNormalization` over rows: y = (x − mean) / √(variance + ε) · scale + bias.

use super::math::fma;
use super::softmax::{LANES, sum_lanes};
use super::vectorized;

#[inline(always)]
pub(super) fn sum(row: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        lanes[lane] += value;
    }
    sum_lanes(lanes)
}

#[inline(always)]
pub(super) fn squares<const FMA: bool>(row: &[f32], mean: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let centred = chunk[lane] - mean;
            lanes[lane] = fma::<FMA>(centred, centred, lanes[lane]);
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        let centred = value - mean;
        lanes[lane] = fma::<FMA>(centred, centred, lanes[lane]);
    }
    sum_lanes(lanes)
}

/// Normalizes one row in place.
#[inline(always)]
fn layer_normalize<const FMA: bool>(
    row: &mut [f32],
    scale: &[f32],
    bias: Option<&[f32]>,
    epsilon: f32,
) {
    let factor = 1.0 / scale.len() as f32;
    let mean = sum(row) * factor;
    let variance = squares::<FMA>(row, mean) * factor;
    let inverse = 1.0 / (variance + epsilon).sqrt();
    match bias {
        Some(bias) => {
            for ((value, &scale), &bias) in row.iter_mut().zip(scale).zip(bias) {
                *value = fma::<FMA>((*value - mean) * inverse, scale, bias);
            }
        }
        None => {
            for (value, &scale) in row.iter_mut().zip(scale) {
                *value = (*value - mean) * inverse * scale;
            }
        }
    }
}

vectorized! {
    /// Normalizes each row of `data` in place; `scale` (and `bias`) have the row's size.
    pub(crate) fn layer_normalize_rows<FMA>(
        data: &mut [f32],
        scale: &[f32],
        bias: Option<&[f32]>,
        epsilon: f32,
    ) {
        for row in data.chunks_exact_mut(scale.len()) {
            layer_normalize::<FMA>(row, scale, bias, epsilon);
        }
    }

    /// Divides each row of `data` by its root mean square, in place, and multiplies it by `scale`.
    pub(crate) fn root_mean_square_rows<FMA>(data: &mut [f32], scale: &[f32], epsilon: f32) {
        let factor = 1.0 / scale.len() as f32;
        for row in data.chunks_exact_mut(scale.len()) {
            let inverse = 1.0 / (squares::<FMA>(row, 0.0) * factor + epsilon).sqrt();
            for (value, &scale) in row.iter_mut().zip(scale) {
                *value = *value * inverse * scale;
            }
        }
    }

    /// sums += each row.
    pub(crate) fn add_rows<FMA>(sums: &mut [f32], rows: &[f32]) {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }

    /// Σ of a slice, in lanes of 16.
    pub(crate) fn sum_row<FMA>(row: &[f32]) -> f32 {
        sum(row)
    }

    /// Σ of each row of `x`, times `factor`.
    pub(crate) fn scaled_row_sums<FMA>(out: &mut [f32], x: &[f32], row_size: usize, factor: f32) {
        for (out, row) in out.iter_mut().zip(x.chunks_exact(row_size)) {
            *out = sum(row) * factor;
        }
    }

    /// Σ of squares of a slice.
    pub(crate) fn sum_squares_row<FMA>(row: &[f32]) -> f32 {
        squares::<FMA>(row, 0.0)
    }

    /// Σ (x − mean)² of a slice.
    pub(crate) fn centred_squares_row<FMA>(row: &[f32], mean: f32) -> f32 {
        squares::<FMA>(row, mean)
    }

    /// out ← (x − mean) · factor + bias.
    pub(crate) fn affine_into<FMA>(
        out: &mut [f32],
        x: &[f32],
        mean: f32,
        factor: f32,
        bias: f32,
    ) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = fma::<FMA>(x - mean, factor, bias);
        }
    }

    /// Σ dy and Σ dy·(x − mean).
    pub(crate) fn flow_sums<FMA>(dy: &[f32], x: &[f32], mean: f32) -> (f32, f32) {
        let (mut sums, mut products) = ([0.0_f32; LANES], [0.0_f32; LANES]);
        let (dy_chunks, dy_rest) = dy.as_chunks::<LANES>();
        let (x_chunks, x_rest) = x.as_chunks::<LANES>();
        for (dy, x) in dy_chunks.iter().zip(x_chunks) {
            for lane in 0..LANES {
                sums[lane] += dy[lane];
                products[lane] = fma::<FMA>(dy[lane], x[lane] - mean, products[lane]);
            }
        }
        for (lane, (&dy, &x)) in dy_rest.iter().zip(x_rest).enumerate() {
            sums[lane] += dy;
            products[lane] = fma::<FMA>(dy, x - mean, products[lane]);
        }
        (sum_lanes(sums), sum_lanes(products))
    }

    /// dx = a·dy + b·(x − mean) + c.
    pub(crate) fn flow_back<FMA>(
        dx: &mut [f32],
        dy: &[f32],
        x: &[f32],
        mean: f32,
        factors: [f32; 3],
    ) {
        let [a, b, c] = factors;
        for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = fma::<FMA>(a, dy, fma::<FMA>(b, x - mean, c));
        }
    }

    /// Divides each row of `data` by its root mean square, in place, and multiplies by `scale`,
    /// which has the row's size.
    pub(crate) fn rms_normalize_rows<FMA>(data: &mut [f32], scale: &[f32], epsilon: f32) {
        let row_size = scale.len();
        let factor = 1.0 / row_size as f32;
        for row in data.chunks_exact_mut(row_size) {
            let inverse = 1.0 / (squares::<FMA>(row, 0.0) * factor + epsilon).sqrt();
            for (value, &scale) in row.iter_mut().zip(scale) {
                *value = *value * inverse * scale;
            }
        }
    }

    /// sums += x².
    pub(crate) fn add_squares<FMA>(sums: &mut [f32], x: &[f32]) {
        for (sum, &x) in sums.iter_mut().zip(x) {
            *sum = fma::<FMA>(x, x, *sum);
        }
    }

    /// sums ← x / (bias + factor · sums)^¾.
    pub(crate) fn divide_by_three_quarters<FMA>(
        sums: &mut [f32],
        x: &[f32],
        bias: f32,
        factor: f32,
    ) {
        for (sum, &x) in sums.iter_mut().zip(x) {
            let root = fma::<FMA>(*sum, factor, bias).sqrt();
            *sum = x / (root * root.sqrt());
        }
    }
}
