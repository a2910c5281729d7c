//! The element types that kernels compute in, and what is computed in each.

use attar_tensor::Element;

/// Runs `$body` with `$ty` naming the Rust type of the elements: f32, f64 and the integers.
macro_rules! by_number {
    ($dtype:expr, $ty:ident => $body:expr, $other:pat => $else:expr) => {
        match $dtype {
            attar_tensor::DType::F32 => {
                type $ty = f32;
                $body
            }
            attar_tensor::DType::F64 => {
                type $ty = f64;
                $body
            }
            dtype => $crate::number::by_integer!(dtype, $ty => $body, $other => $else),
        }
    };
}
pub(crate) use by_number;

/// Runs `$body` with `$ty` naming the Rust type of the elements: the integers of whole bytes.
macro_rules! by_integer {
    ($dtype:expr, $ty:ident => $body:expr, $other:pat => $else:expr) => {
        match $dtype {
            attar_tensor::DType::I64 => {
                type $ty = i64;
                $body
            }
            attar_tensor::DType::I32 => {
                type $ty = i32;
                $body
            }
            attar_tensor::DType::I16 => {
                type $ty = i16;
                $body
            }
            attar_tensor::DType::I8 => {
                type $ty = i8;
                $body
            }
            attar_tensor::DType::U64 => {
                type $ty = u64;
                $body
            }
            attar_tensor::DType::U32 => {
                type $ty = u32;
                $body
            }
            attar_tensor::DType::U16 => {
                type $ty = u16;
                $body
            }
            attar_tensor::DType::U8 => {
                type $ty = u8;
                $body
            }
            $other => $else,
        }
    };
}
pub(crate) use by_integer;

/// Arithmetic of one element type. Integers wrap.
pub(crate) trait Number: Element + PartialOrd + Default {
    const ZERO: Self;
    const ONE: Self;
    /// What every number is at least: −∞, or the least integer.
    const LEAST: Self;
    /// What every number is at most.
    const GREATEST: Self;
    /// The least finite number.
    const LOWEST: Self;
    /// The greatest finite number.
    const HIGHEST: Self;

    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    /// The quotient; of integers cut off, and 0 where the divisor is.
    fn over(self, other: Self) -> Self;
    /// The rest with the sign of the dividend; 0 where an integer divisor is.
    fn remainder(self, other: Self) -> Self;
    /// The rest with the sign of the divisor; 0 where an integer divisor is.
    fn modulo(self, other: Self) -> Self;
    fn power(self, exponent: Self) -> Self;
    fn magnitude(self) -> Self;
    fn negated(self) -> Self;
    /// −1, 0 or 1; NaN stays.
    fn sign(self) -> Self;
    fn is_nan(self) -> bool;
    fn from_f64(x: f64) -> Self;
    fn as_f64(self) -> f64;

    /// The greater of two; NaN before all.
    #[inline(always)]
    #[allow(clippy::inline_always)] // the loops around it become vector code
    fn greater(self, other: Self) -> Self {
        if self > other || self.is_nan() { self } else { other }
    }

    /// The lesser of two; NaN before all.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    fn lesser(self, other: Self) -> Self {
        if self < other || self.is_nan() { self } else { other }
    }
}

macro_rules! float {
    ($ty:ident) => {
        impl Number for $ty {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const LEAST: Self = $ty::NEG_INFINITY;
            const GREATEST: Self = $ty::INFINITY;
            const LOWEST: Self = $ty::MIN;
            const HIGHEST: Self = $ty::MAX;

            fn plus(self, other: Self) -> Self {
                self + other
            }
            fn minus(self, other: Self) -> Self {
                self - other
            }
            fn times(self, other: Self) -> Self {
                self * other
            }
            fn over(self, other: Self) -> Self {
                self / other
            }
            fn remainder(self, other: Self) -> Self {
                self % other
            }
            fn modulo(self, other: Self) -> Self {
                let rest = self % other;
                if rest == 0.0 {
                    rest.copysign(other)
                } else if (rest < 0.0) == (other < 0.0) {
                    rest
                } else {
                    rest + other
                }
            }
            fn power(self, exponent: Self) -> Self {
                self.powf(exponent)
            }
            fn magnitude(self) -> Self {
                self.abs()
            }
            fn negated(self) -> Self {
                -self
            }
            fn sign(self) -> Self {
                if self > 0.0 {
                    1.0
                } else if self < 0.0 {
                    -1.0
                } else {
                    self
                }
            }
            fn is_nan(self) -> bool {
                $ty::is_nan(self)
            }
            fn from_f64(x: f64) -> Self {
                x as $ty
            }
            fn as_f64(self) -> f64 {
                self as f64
            }
        }
    };
}

float!(f32);
float!(f64);

macro_rules! integer {
    ($ty:ident, |$x:ident| $magnitude:expr, $sign:expr) => {
        impl Number for $ty {
            const ZERO: Self = 0;
            const ONE: Self = 1;
            const LEAST: Self = $ty::MIN;
            const GREATEST: Self = $ty::MAX;
            const LOWEST: Self = $ty::MIN;
            const HIGHEST: Self = $ty::MAX;

            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            fn times(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            fn over(self, other: Self) -> Self {
                if other == 0 { 0 } else { self.wrapping_div(other) }
            }
            fn remainder(self, other: Self) -> Self {
                if other == 0 { 0 } else { self.wrapping_rem(other) }
            }
            #[allow(unused_comparisons)] // of the unsigned types
            fn modulo(self, other: Self) -> Self {
                let rest = self.remainder(other);
                if rest == 0 || (rest < 0) == (other < 0) { rest } else { rest + other }
            }
            fn power(self, exponent: Self) -> Self {
                match u64::try_from(exponent) {
                    Ok(exponent) => wrapping_power(self, exponent),
                    Err(_) => Self::from_f64(self.as_f64().powf(exponent.as_f64())),
                }
            }
            fn magnitude(self) -> Self {
                let $x = self;
                $magnitude
            }
            fn negated(self) -> Self {
                self.wrapping_neg()
            }
            fn sign(self) -> Self {
                let $x = self;
                $sign
            }
            fn is_nan(self) -> bool {
                false
            }
            fn from_f64(x: f64) -> Self {
                x as $ty
            }
            fn as_f64(self) -> f64 {
                self as f64
            }
        }
    };
}

integer!(i64, |x| x.wrapping_abs(), x.signum());
integer!(i32, |x| x.wrapping_abs(), x.signum());
integer!(i16, |x| x.wrapping_abs(), x.signum());
integer!(i8, |x| x.wrapping_abs(), x.signum());
integer!(u64, |x| x, x.min(1));
integer!(u32, |x| x, x.min(1));
integer!(u16, |x| x, x.min(1));
integer!(u8, |x| x, x.min(1));

/// By squaring, since an exponent may be greater than the 32 bits of `wrapping_pow`.
fn wrapping_power<T: Number>(base: T, mut exponent: u64) -> T {
    let (mut result, mut square) = (T::ONE, base);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result.times(square);
        }
        square = square.times(square);
        exponent >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modulus_takes_the_sign_of_the_divisor_and_the_remainder_that_of_the_dividend() {
        assert_eq!((-4_i64).modulo(3), 2);
        assert_eq!((-4_i64).remainder(3), -1);
        assert_eq!(4.5_f32.modulo(-3.0), -1.5);
        assert_eq!(5.0_f32.modulo(f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert!((-0.0_f64).modulo(2.0).is_sign_positive());
        assert_eq!(i32::MIN.modulo(-1), 0);
    }

    #[test]
    fn integer_powers_wrap_and_negative_exponents_divide() {
        assert_eq!(3_i32.power(4), 81);
        assert_eq!(2_i64.power(64), 0);
        assert_eq!((-1_i64).power(-3), -1);
        assert_eq!(2_i64.power(-1), 0);
        assert_eq!(2_i64.power(i64::MAX), 0);
    }

    #[test]
    fn nan_wins_both_extremes() {
        assert!(1.0_f32.greater(f32::NAN).is_nan() && f32::NAN.lesser(1.0).is_nan());
        assert_eq!(1_u64.greater(u64::MAX), u64::MAX);
    }
}
