//! Loops that multiply a gradient by the slope of a function, which its input or its output tells.

use super::math;
use super::vectorized;

macro_rules! slope_loops {
    ($($(#[$meta:meta])* $name:ident($dy:ident, $v:ident $(, $setting:ident)*) => $value:expr;)*) => {
        vectorized! {$(
            $(#[$meta])*
            pub(crate) fn $name<FMA>(gradient: &mut [f32], values: &[f32] $(, $setting: f32)*) {
                for (gradient, &$v) in gradient.iter_mut().zip(values) {
                    let $dy = *gradient;
                    *gradient = $value;
                }
            }
        )*}
    };
}

const TWO_OVER_ROOT_PI: f32 = std::f32::consts::FRAC_2_SQRT_PI;

slope_loops! {
    // Of the output y.
    exp(dy, y) => dy * y;
    sqrt(dy, y) => 0.5 * dy / y;
    sigmoid(dy, y) => dy * y * (1.0 - y);
    tanh(dy, y) => dy * (1.0 - y * y);
    relu(dy, y) => if y > 0.0 { dy } else { 0.0 };
    /// Between the bounds.
    clamp(dy, y, low, high) => if y > low && y < high { dy } else { 0.0 };
    hard_sigmoid(dy, y, alpha) => if y > 0.0 && y < 1.0 { alpha * dy } else { 0.0 };
    softsign(dy, y) => dy * (1.0 - y.abs()) * (1.0 - y.abs());
    reciprocal(dy, y) => -dy * y * y;
    tan(dy, y) => dy * math::fma::<FMA>(y, y, 1.0);
    /// Of up·x, and down·(exp(x·narrowing) − 1) below 0, where `up` and `down` are positive.
    exponential_unit(dy, y, up, down, narrowing) => {
        if y < 0.0 { dy * (y + down) * narrowing } else { dy * up }
    };
    // Of the input x.
    exponential_unit_of_input(dy, x, up, down, narrowing) => {
        if x < 0.0 { dy * down * narrowing * math::exp::<FMA>(x * narrowing) } else { dy * up }
    };
    /// Of the input, or of the output where alpha is positive.
    leaky(dy, x, alpha) => if x < 0.0 { alpha * dy } else { dy };
    erf(dy, x) => dy * TWO_OVER_ROOT_PI * math::exp::<FMA>(-x * x);
    ln(dy, x) => dy / x;
    softplus(dy, x) => dy * math::sigmoid::<FMA>(x);
    hard_swish(dy, x) => {
        let slope = math::fma::<FMA>(x, 1.0 / 3.0, 0.5);
        dy * if x <= -3.0 { 0.0 } else if x >= 3.0 { 1.0 } else { slope }
    };
    mish(dy, x) => {
        let t = math::tanh::<FMA>(math::softplus::<FMA>(x));
        // x·(1 − t²) vanishes at both ends, where x alone may be infinite.
        dy * math::fma::<FMA>(x.clamp(-1e6, 1e6) * (1.0 - t * t), math::sigmoid::<FMA>(x), t)
    };
    swish(dy, x, alpha) => {
        let s = math::sigmoid::<FMA>(alpha * x);
        dy * s * math::fma::<FMA>(alpha * x.clamp(-1e30, 1e30), 1.0 - s, 1.0)
    };
    square(dy, x) => 2.0 * dy * x;
    cube(dy, x) => 3.0 * dy * x * x;
    root(dy, x) => 0.5 * dy / x.sqrt();
    inverse(dy, x) => -dy / (x * x);
    abs(dy, x) => if x > 0.0 { dy } else if x < 0.0 { -dy } else { 0.0 };
    above(dy, x, threshold) => if x > threshold { dy } else { 0.0 };
    outside(dy, x, threshold) => if x.abs() > threshold { dy } else { 0.0 };
}
