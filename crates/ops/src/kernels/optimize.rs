//! Steps of optimizers, and sums of squares: one pass over memory each.

use super::math::fma;
use super::vectorized;

/// Lanes of f64 sums.
const LANES: usize = 16;

/// The largest magnitude's bits, of those seen; from [`NOT_FINITE`] on, one was NaN or infinite.
#[inline(always)]
fn worse(worst: u32, x: f32) -> u32 {
    worst.max(x.to_bits() & 0x7fff_ffff)
}

/// The bits of infinity; those of NaN are greater.
const NOT_FINITE: u32 = 0x7f80_0000;

/// What one step of Adam multiplies by. See [`adam`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamFactors {
    pub(crate) scale: f32,
    pub(crate) decay: f32,
    pub(crate) l2: f32,
    pub(crate) beta2: f32,
    pub(crate) one_minus_beta1: f32,
    pub(crate) one_minus_beta2: f32,
    pub(crate) bias2: f32,
    pub(crate) epsilon: f32,
    pub(crate) step_size: f32,
}

/// What one step of SGD multiplies by. See [`sgd`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct SgdFactors {
    pub(crate) scale: f32,
    pub(crate) l2: f32,
    pub(crate) momentum: f32,
    pub(crate) one_minus_dampening: f32,
    pub(crate) rate: f32,
}

vectorized! {
    /// g′ = scale·g + l2·w, w = decay·w, m = m + (1 − β₁)(g′ − m), v = β₂·v + (1 − β₂)g′²,
    /// w −= size·m/(bias2·√v + ε). Whether every new weight is finite.
    pub(crate) fn adam<FMA>(
        w: &mut [f32],
        g: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        by: &AdamFactors,
    ) -> bool {
        let by = *by;
        let mut worst = 0;
        for (((w, &g), m), v) in w.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()) {
            let g = fma::<FMA>(by.l2, *w, by.scale * g);
            *m = fma::<FMA>(by.one_minus_beta1, g - *m, *m);
            *v = fma::<FMA>(by.one_minus_beta2 * g, g, by.beta2 * *v);
            let step = by.step_size * *m / fma::<FMA>(v.sqrt(), by.bias2, by.epsilon);
            *w = by.decay * *w - step;
            worst = worse(worst, *w);
        }
        worst < NOT_FINITE
    }

    /// w −= rate·(scale·g + l2·w). Whether every new weight is finite.
    pub(crate) fn sgd<FMA>(w: &mut [f32], g: &[f32], by: &SgdFactors) -> bool {
        let by = *by;
        let mut worst = 0;
        for (w, &g) in w.iter_mut().zip(g) {
            let g = fma::<FMA>(by.l2, *w, by.scale * g);
            *w = fma::<FMA>(-by.rate, g, *w);
            worst = worse(worst, *w);
        }
        worst < NOT_FINITE
    }

    /// g′ = scale·g + l2·w, b = μ·b + (1 − dampening)·g′, w −= rate·b. Whether every new weight is
    /// finite.
    pub(crate) fn sgd_momentum<FMA>(
        w: &mut [f32],
        g: &[f32],
        b: &mut [f32],
        by: &SgdFactors,
    ) -> bool {
        let by = *by;
        let mut worst = 0;
        for ((w, &g), b) in w.iter_mut().zip(g).zip(b.iter_mut()) {
            let g = fma::<FMA>(by.l2, *w, by.scale * g);
            *b = fma::<FMA>(by.momentum, *b, by.one_minus_dampening * g);
            *w = fma::<FMA>(-by.rate, *b, *w);
            worst = worse(worst, *w);
        }
        worst < NOT_FINITE
    }

    /// As [`sgd_momentum`], but w −= rate·(g′ + μ·b).
    pub(crate) fn sgd_nesterov<FMA>(
        w: &mut [f32],
        g: &[f32],
        b: &mut [f32],
        by: &SgdFactors,
    ) -> bool {
        let by = *by;
        let mut worst = 0;
        for ((w, &g), b) in w.iter_mut().zip(g).zip(b.iter_mut()) {
            let g = fma::<FMA>(by.l2, *w, by.scale * g);
            *b = fma::<FMA>(by.momentum, *b, by.one_minus_dampening * g);
            *w = fma::<FMA>(-by.rate, fma::<FMA>(by.momentum, *b, g), *w);
            worst = worse(worst, *w);
        }
        worst < NOT_FINITE
    }

    /// w *= factor.
    pub(crate) fn scale<FMA>(w: &mut [f32], factor: f32) {
        for w in w {
            *w *= factor;
        }
    }

    /// a += (1 − keep)·(w − a).
    pub(crate) fn average<FMA>(a: &mut [f32], w: &[f32], one_minus_keep: f32) {
        for (a, &w) in a.iter_mut().zip(w) {
            *a = fma::<FMA>(one_minus_keep, w - *a, *a);
        }
    }

    /// Σ x².
    pub(crate) fn square_sum<FMA>(x: &[f32]) -> f64 {
        let mut lanes = [0.0_f64; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                let x = f64::from(chunk[lane]);
                lanes[lane] += x * x;
            }
        }
        for (lane, &x) in rest.iter().enumerate() {
            lanes[lane] += f64::from(x) * f64::from(x);
        }
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}
