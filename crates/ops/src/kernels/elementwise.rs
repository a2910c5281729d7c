//! Loops over one or two f32 slices.

use super::math;
use super::vectorized;
use crate::broadcast::Operand;

macro_rules! unary_loops {
    ($($name:ident: $x:ident => $value:expr;)*) => {
        vectorized! {$(
            pub(crate) fn $name<FMA>(data: &mut [f32]) {
                for value in data {
                    let $x = *value;
                    *value = $value;
                }
            }
        )*}
    };
}

unary_loops! {
    exp: x => math::exp::<FMA>(x);
    erf: x => math::erf::<FMA>(x);
    gelu: x => math::gelu::<FMA>(x);
    gelu_tanh: x => math::gelu_tanh::<FMA>(x);
    sigmoid: x => math::sigmoid::<FMA>(x);
    silu: x => x * math::sigmoid::<FMA>(x);
    tanh: x => math::tanh::<FMA>(x);
    sqrt: x => x.sqrt();
    ln: x => math::ln::<FMA>(x);
    softplus: x => math::softplus::<FMA>(x);
    mish: x => x * math::tanh::<FMA>(math::softplus::<FMA>(x));
    ceil: x => x.ceil();
    floor: x => x.floor();
    round: x => x.round_ties_even();
}

macro_rules! binary_loops {
    ($($name:ident: $a:ident, $b:ident => $value:expr;)*) => {
        vectorized! {$(
            pub(crate) fn $name<FMA>(out: &mut [f32], left: Operand<'_, f32>, right: Operand<'_, f32>) {
                match (left, right) {
                    (Operand::Row(left), Operand::Row(right)) => {
                        for ((out, &$a), &$b) in out.iter_mut().zip(left).zip(right) {
                            *out = $value;
                        }
                    }
                    (Operand::Row(left), Operand::Scalar($b)) => {
                        for (out, &$a) in out.iter_mut().zip(left) {
                            *out = $value;
                        }
                    }
                    (Operand::Scalar($a), Operand::Row(right)) => {
                        for (out, &$b) in out.iter_mut().zip(right) {
                            *out = $value;
                        }
                    }
                    (Operand::Scalar($a), Operand::Scalar($b)) => out.fill($value),
                }
            }
        )*}
    };
}

binary_loops! {
    add: a, b => a + b;
    sub: a, b => a - b;
    mul: a, b => a * b;
    div: a, b => a / b;
    greater: a, b => if a > b || a.is_nan() { a } else { b };
    lesser: a, b => if a < b || a.is_nan() { a } else { b };
    prelu: x, slope => if x < 0.0 { x * slope } else { x };
}

macro_rules! in_place_loops {
    ($($name:ident: $a:ident, $b:ident => $value:expr;)*) => {
        vectorized! {$(
            pub(crate) fn $name<FMA>(data: &mut [f32], other: Operand<'_, f32>) {
                match other {
                    Operand::Row(other) => {
                        for (value, &$b) in data.iter_mut().zip(other) {
                            let $a = *value;
                            *value = $value;
                        }
                    }
                    Operand::Scalar($b) => {
                        for value in data {
                            let $a = *value;
                            *value = $value;
                        }
                    }
                }
            }
        )*}
    };
}

in_place_loops! {
    add_in_place: a, b => a + b;
    sub_in_place: a, b => a - b;
    mul_in_place: a, b => a * b;
    div_in_place: a, b => a / b;
}

vectorized! {
    /// data = clamp(data, low, high). NaN stays.
    pub(crate) fn clamp<FMA>(data: &mut [f32], low: f32, high: f32) {
        for value in data {
            *value = if *value < low { low } else { *value };
            *value = if *value > high { high } else { *value };
        }
    }

    /// data = data · sigmoid(alpha · data).
    pub(crate) fn swish<FMA>(data: &mut [f32], alpha: f32) {
        for value in data {
            *value *= math::sigmoid::<FMA>(alpha * *value);
        }
    }

    /// up·x from 0 on, down·(exp(x·narrowing) − 1) below.
    pub(crate) fn exponential_unit<FMA>(data: &mut [f32], up: f32, down: f32, narrowing: f32) {
        for value in data {
            let x = *value;
            let below = down * math::exp_m1::<FMA>(x * narrowing);
            *value = if x < 0.0 { below } else { up * x };
        }
    }

    /// data += other.
    pub(crate) fn add_assign<FMA>(data: &mut [f32], other: &[f32]) {
        for (value, &other) in data.iter_mut().zip(other) {
            *value += other;
        }
    }

    /// data = max(data, other); NaN before all.
    pub(crate) fn greater_in_place<FMA>(data: &mut [f32], other: &[f32]) {
        for (value, &other) in data.iter_mut().zip(other) {
            *value = if *value > other || value.is_nan() { *value } else { other };
        }
    }

    /// The greatest value; −∞ of none, NaN before all.
    pub(crate) fn greatest<FMA>(data: &[f32]) -> f32 {
        const LANES: usize = 32;
        let mut high = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = data.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                let (old, new) = (high[lane], chunk[lane]);
                high[lane] = if old > new || old.is_nan() { old } else { new };
            }
        }
        let greater = |a: f32, b: f32| if a > b || a.is_nan() { a } else { b };
        let all = high.into_iter().chain(rest.iter().copied());
        all.fold(f32::NEG_INFINITY, greater)
    }

    /// The least and the greatest value; (∞, −∞) for none. NaN is skipped.
    pub(crate) fn min_max<FMA>(data: &[f32]) -> (f32, f32) {
        const LANES: usize = 32;
        let mut low = [f32::INFINITY; LANES];
        let mut high = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = data.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                low[lane] = if chunk[lane] < low[lane] { chunk[lane] } else { low[lane] };
                high[lane] = if chunk[lane] > high[lane] { chunk[lane] } else { high[lane] };
            }
        }
        for (lane, &value) in rest.iter().enumerate() {
            low[lane] = low[lane].min(value);
            high[lane] = high[lane].max(value);
        }
        let least = low.into_iter().fold(f32::INFINITY, f32::min);
        (least, high.into_iter().fold(f32::NEG_INFINITY, f32::max))
    }
}
