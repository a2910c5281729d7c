//! Backward loops over rows: what flows out of a node becomes, in place, what flows into it.

use super::math::{self, fma};
use super::softmax::{LANES, sum_lanes};
use super::vectorized;

/// 1/√(2π).
const DENSITY_AT_ZERO: f32 = 0.398_942_3;

/// d/dx x·Φ(x) = Φ(x) + x·φ(x).
#[inline(always)]
fn gelu_slope<const FMA: bool>(x: f32) -> f32 {
    let below = fma::<FMA>(math::erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2), 0.5, 0.5);
    fma::<FMA>(x * DENSITY_AT_ZERO, math::exp::<FMA>(-0.5 * x * x), below)
}

/// d/dx ½·x·(1 + tanh u), u = √(2/π)·(x + 0.044715·x³).
#[inline(always)]
fn gelu_tanh_slope<const FMA: bool>(x: f32) -> f32 {
    const ROOT: f32 = 0.797_884_6;
    let square = x * x;
    let t = math::tanh::<FMA>(ROOT * fma::<FMA>(0.044_715 * square, x, x));
    let du = ROOT * fma::<FMA>(3.0 * 0.044_715, square, 1.0);
    fma::<FMA>(0.5 * x * du, fma::<FMA>(-t, t, 1.0), fma::<FMA>(0.5, t, 0.5))
}

/// d/dx x·σ(αx) = s + αx·s·(1 − s), s = σ(αx).
#[inline(always)]
fn swish_slope<const FMA: bool>(x: f32, alpha: f32) -> f32 {
    let s = math::sigmoid::<FMA>(alpha * x);
    fma::<FMA>(alpha * x * s, 1.0 - s, s)
}

/// Σ aᵢ·bᵢ in lanes of 16.
#[inline(always)]
fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] = fma::<FMA>(a[lane], b[lane], lanes[lane]);
        }
    }
    for (lane, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[lane] = fma::<FMA>(a, b, lanes[lane]);
    }
    sum_lanes(lanes)
}

/// One row of a normalization x̂ = (x − mean)·inverse: adds dy·x̂ to `scale_sums` and dy to
/// `bias_sums`, and gives Σ g and Σ g·x̂ of g = dy·scale.
#[inline(always)]
fn normalization_sums<const FMA: bool>(
    dy: &[f32],
    x: &[f32],
    scale: &[f32],
    [mean, inverse]: [f32; 2],
    scale_sums: &mut [f32],
    bias_sums: &mut [f32],
) -> [f32; 2] {
    let (mut sums, mut products) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let ((dy, dy_rest), (x, x_rest)) = (dy.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    let (scale, scale_rest) = scale.as_chunks::<LANES>();
    let (scale_sums, scale_sums_rest) = scale_sums.as_chunks_mut::<LANES>();
    let (bias_sums, bias_sums_rest) = bias_sums.as_chunks_mut::<LANES>();
    let rows = dy.iter().zip(x).zip(scale).zip(scale_sums).zip(bias_sums);
    for ((((dy, x), scale), scale_sums), bias_sums) in rows {
        for lane in 0..LANES {
            let (centred, g) = ((x[lane] - mean) * inverse, dy[lane] * scale[lane]);
            scale_sums[lane] = fma::<FMA>(dy[lane], centred, scale_sums[lane]);
            bias_sums[lane] += dy[lane];
            sums[lane] += g;
            products[lane] = fma::<FMA>(g, centred, products[lane]);
        }
    }
    for lane in 0..dy_rest.len() {
        let (centred, g) = ((x_rest[lane] - mean) * inverse, dy_rest[lane] * scale_rest[lane]);
        scale_sums_rest[lane] = fma::<FMA>(dy_rest[lane], centred, scale_sums_rest[lane]);
        bias_sums_rest[lane] += dy_rest[lane];
        sums[lane] += g;
        products[lane] = fma::<FMA>(g, centred, products[lane]);
    }
    [sum_lanes(sums), sum_lanes(products)]
}

vectorized! {
    /// dx = y·(dy − Σ y·dy)·scale over rows of softmax results y.
    pub(crate) fn softmax_rows<FMA>(dy: &mut [f32], y: &[f32], row_size: usize, scale: f32) {
        for (dy, y) in dy.chunks_exact_mut(row_size).zip(y.chunks_exact(row_size)) {
            let sum = dot::<FMA>(dy, y);
            for (dy, &y) in dy.iter_mut().zip(y) {
                *dy = (*dy - sum) * y * scale;
            }
        }
    }

    /// dx = dy − exp(y)·Σ dy over rows of the softmax's logarithm y.
    pub(crate) fn log_softmax_rows<FMA>(dy: &mut [f32], y: &[f32], row_size: usize) {
        for (dy, y) in dy.chunks_exact_mut(row_size).zip(y.chunks_exact(row_size)) {
            let sum = super::normalize::sum(dy);
            for (dy, &y) in dy.iter_mut().zip(y) {
                *dy = fma::<FMA>(-math::exp::<FMA>(y), sum, *dy);
            }
        }
    }

    /// With x̂ = (x − mean)/√(variance + ε) and g = dy·scale: dx = (g − mean g − x̂·mean(g·x̂)) /
    /// √(variance + ε). `sums` holds Σ dy·x̂ and, behind it, Σ dy over the rows.
    pub(crate) fn layer_rows<FMA>(
        dy: &mut [f32],
        x: &[f32],
        scale: &[f32],
        epsilon: f32,
        sums: &mut [f32],
    ) {
        let row_size = scale.len();
        let factor = 1.0 / row_size as f32;
        let (scale_sums, bias_sums) = sums.split_at_mut(row_size);
        for (dy, x) in dy.chunks_exact_mut(row_size).zip(x.chunks_exact(row_size)) {
            let mean = super::normalize::sum(x) * factor;
            let variance = super::normalize::squares::<FMA>(x, mean) * factor;
            let inverse = 1.0 / (variance + epsilon).sqrt();
            let statistics = [mean, inverse];
            let [sum, product] =
                normalization_sums::<FMA>(dy, x, scale, statistics, scale_sums, bias_sums);
            let (sum, product) = (sum * factor, product * factor);
            for ((dy, &x), &scale) in dy.iter_mut().zip(x).zip(scale) {
                let centred = (x - mean) * inverse;
                // No fused product: of a row of one element, g − mean g is exactly 0.
                *dy = (*dy * scale - sum - centred * product) * inverse;
            }
        }
    }

    /// With x̂ = x/√(mean x² + ε) and g = dy·scale: dx = (g − x̂·mean(g·x̂)) / √(mean x² + ε).
    /// `sums` as in [`layer_rows`].
    pub(crate) fn root_mean_square_rows<FMA>(
        dy: &mut [f32],
        x: &[f32],
        scale: &[f32],
        epsilon: f32,
        sums: &mut [f32],
    ) {
        let row_size = scale.len();
        let factor = 1.0 / row_size as f32;
        let (scale_sums, bias_sums) = sums.split_at_mut(row_size);
        for (dy, x) in dy.chunks_exact_mut(row_size).zip(x.chunks_exact(row_size)) {
            let square = super::normalize::squares::<FMA>(x, 0.0) * factor;
            let inverse = 1.0 / (square + epsilon).sqrt();
            let statistics = [0.0, inverse];
            let [_, product] =
                normalization_sums::<FMA>(dy, x, scale, statistics, scale_sums, bias_sums);
            let product = product * factor * inverse;
            for ((dy, &x), &scale) in dy.iter_mut().zip(x).zip(scale) {
                *dy = fma::<FMA>(-x, product, *dy * scale) * inverse;
            }
        }
    }

    /// y = x·Φ(x).
    pub(crate) fn gelu_into<FMA>(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = math::gelu::<FMA>(x);
        }
    }

    /// dx = dy·(Φ(x) + x·φ(x)).
    pub(crate) fn gelu<FMA>(dy: &mut [f32], x: &[f32]) {
        for (dy, &x) in dy.iter_mut().zip(x) {
            *dy *= gelu_slope::<FMA>(x);
        }
    }

    /// As [`gelu`], of the approximation by tanh.
    pub(crate) fn gelu_tanh<FMA>(dy: &mut [f32], x: &[f32]) {
        for (dy, &x) in dy.iter_mut().zip(x) {
            *dy *= gelu_tanh_slope::<FMA>(x);
        }
    }

    /// dx = dy·(s + αx·s·(1 − s)), s = σ(αx).
    pub(crate) fn swish<FMA>(dy: &mut [f32], x: &[f32], alpha: f32) {
        for (dy, &x) in dy.iter_mut().zip(x) {
            *dy *= swish_slope::<FMA>(x, alpha);
        }
    }

    /// dx = dy·(1 − y²) of y = tanh x.
    pub(crate) fn tanh<FMA>(dy: &mut [f32], y: &[f32]) {
        for (dy, &y) in dy.iter_mut().zip(y) {
            *dy *= fma::<FMA>(-y, y, 1.0);
        }
    }

    /// dx = dy·y·(1 − y) of y = σ(x).
    pub(crate) fn sigmoid<FMA>(dy: &mut [f32], y: &[f32]) {
        for (dy, &y) in dy.iter_mut().zip(y) {
            *dy *= fma::<FMA>(-y, y, y);
        }
    }

    /// dx = dy where y > 0, else slope·dy.
    pub(crate) fn relu<FMA>(dy: &mut [f32], y: &[f32], slope: f32) {
        for (dy, &y) in dy.iter_mut().zip(y) {
            *dy = if y > 0.0 { *dy } else { *dy * slope };
        }
    }
}
