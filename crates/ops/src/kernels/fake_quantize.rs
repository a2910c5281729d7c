//! Fake quantization: values rounded to a grid in f32, and what flows back through it.

use super::vectorized;

/// Beyond this an f32 has no digits behind the point; added to less, it leaves none.
const WHOLE: f32 = 8_388_608.0;

/// The nearest integer, half to even; zero is positive, as it comes out of integers.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> f32 {
    let magnitude = x.abs();
    let rounded = ((magnitude + WHOLE) - WHOLE).copysign(x) + 0.0;
    if magnitude < WHOLE { rounded } else { x }
}

/// x / scale between the ends. NaN becomes the lower one, as in `quantize`.
#[allow(clippy::manual_clamp)] // `clamp` would keep NaN
#[inline(always)]
fn level(x: f32, scale: f32, [low, high]: [f32; 2]) -> f32 {
    (x / scale).max(low).min(high)
}

/// Σ dy·slope(x), the order depending on the length alone.
#[inline(always)]
fn sum(dy: &[f32], x: &[f32], slope: impl Fn(f32) -> f32) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0.0_f64; LANES];
    let ((dy, dy_rest), (x, x_rest)) = (dy.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    for (dy, x) in dy.iter().zip(x) {
        for lane in 0..LANES {
            sums[lane] += f64::from(dy[lane] * slope(x[lane]));
        }
    }
    for ((sum, dy), &x) in sums.iter_mut().zip(dy_rest).zip(x_rest) {
        *sum += f64::from(dy * slope(x));
    }
    sums.iter().sum()
}

vectorized! {
    /// Each value becomes the nearest multiple of the scale from the first end to the second.
    pub(crate) fn round_to_levels<FMA>(out: &mut [f32], x: &[f32], scale: f32, ends: [f32; 2]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = nearest(level(x, scale, ends)) * scale;
        }
    }

    /// dy = dy where x / scale lies between the ends, 0 elsewhere.
    pub(crate) fn straight_through<FMA>(dy: &mut [f32], x: &[f32], scale: f32, ends: [f32; 2]) {
        let [low, high] = ends;
        for (dy, &x) in dy.iter_mut().zip(x) {
            let level = x / scale;
            *dy = if level >= low && level <= high { *dy } else { 0.0 };
        }
    }

    /// Σ dy·(round(x / scale) − x / scale) between the ends, and Σ dy·end outside.
    pub(crate) fn step_slopes<FMA>(dy: &[f32], x: &[f32], scale: f32, ends: [f32; 2]) -> f64 {
        sum(dy, x, |x| {
            let (exact, level) = (x / scale, level(x, scale, ends));
            if exact == level { nearest(level) - level } else { level }
        })
    }

    /// −scale·Σ dy outside of the ends.
    pub(crate) fn clipped_sum<FMA>(dy: &[f32], x: &[f32], scale: f32, ends: [f32; 2]) -> f64 {
        sum(dy, x, |x| if x / scale == level(x, scale, ends) { 0.0 } else { -scale })
    }

    /// scale where x ≥ 0, else −scale.
    pub(crate) fn signs<FMA>(out: &mut [f32], x: &[f32], scale: f32) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = if x >= 0.0 { scale } else { -scale };
        }
    }

    /// Σ dy·sign(x).
    pub(crate) fn sign_slopes<FMA>(dy: &[f32], x: &[f32]) -> f64 {
        sum(dy, x, |x| if x >= 0.0 { 1.0 } else { -1.0 })
    }

    /// dy = dy where |x| ≤ 1, 0 elsewhere.
    pub(crate) fn within_reach<FMA>(dy: &mut [f32], x: &[f32]) {
        for (dy, &x) in dy.iter_mut().zip(x) {
            *dy = if x.abs() <= 1.0 { *dy } else { 0.0 };
        }
    }
}
