//! Loops over one or two f32 slices.

use super::math;
use super::vectorized;

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
}

/// How a row of an element-wise operation reads an operand.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    Row(&'a [f32]),
    Scalar(f32),
}

macro_rules! binary_loops {
    ($($name:ident: $a:ident, $b:ident => $value:expr;)*) => {
        vectorized! {$(
            pub(crate) fn $name<FMA>(out: &mut [f32], left: Operand<'_>, right: Operand<'_>) {
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
}

vectorized! {
    /// data = clamp(data, low, high). NaN stays.
    pub(crate) fn clamp<FMA>(data: &mut [f32], low: f32, high: f32) {
        for value in data {
            *value = if *value < low { low } else { *value };
            *value = if *value > high { high } else { *value };
        }
    }

    /// data += other.
    pub(crate) fn add_assign<FMA>(data: &mut [f32], other: &[f32]) {
        for (value, &other) in data.iter_mut().zip(other) {
            *value += other;
        }
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
