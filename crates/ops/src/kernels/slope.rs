//! Slopes of activations: dy ← dy · f′(z).

use super::math;
use super::vectorized;

macro_rules! slopes {
    ($($(#[$meta:meta])* $name:ident($($param:ident),*): $z:ident => $slope:expr;)*) => {
        vectorized! {$(
            $(#[$meta])*
            pub(crate) fn $name<FMA>(dy: &mut [f32], z: &[f32], $($param: f32),*) {
                for (dy, &$z) in dy.iter_mut().zip(z) {
                    *dy *= $slope;
                }
            }
        )*}
    };
}

slopes! {
    /// Of clamp(z, low, high), told from its value as well as from z.
    clamp(low, high): z => if z > low && z < high { 1.0 } else { 0.0 };
    /// Of z · clamp(α·z + β, 0, 1).
    hard_swish(alpha, beta): z => {
        let line = alpha * z + beta;
        if line <= 0.0 {
            0.0
        } else if line >= 1.0 {
            1.0
        } else {
            line + alpha * z
        }
    };
    /// Of clamp(α·z + β, 0, 1).
    hard_sigmoid(alpha, beta): z => {
        let line = alpha * z + beta;
        if line > 0.0 && line < 1.0 { alpha } else { 0.0 }
    };
    leaky_relu(alpha): z => if z < 0.0 { alpha } else { 1.0 };
    /// σ·(1 − σ)
    sigmoid(): z => {
        let s = math::sigmoid::<FMA>(z);
        s * (1.0 - s)
    };
    /// Of z·σ(z): σ·(1 + z·(1 − σ))
    silu(): z => {
        let s = math::sigmoid::<FMA>(z);
        s * (1.0 + z * (1.0 - s))
    };
    /// 1 − tanh²
    tanh(): z => {
        let t = math::tanh::<FMA>(z);
        1.0 - t * t
    };
    /// Of z·Φ(z): Φ + z·φ
    gelu(): z => {
        let normal = 0.5 * (1.0 + math::erf::<FMA>(z * std::f32::consts::FRAC_1_SQRT_2));
        normal + z * 0.398_942_3 * math::exp::<FMA>(-0.5 * z * z)
    };
}
