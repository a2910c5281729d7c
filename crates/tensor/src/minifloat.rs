//! Floats of 8, 6 and 4 bits (Micikevicius et al., 2022, arXiv:2209.05433; Noune et al., 2022,
//! arXiv:2206.02915; OCP Microscaling Formats 1.0): their codes to numbers and back.

use crate::DType;

/// How a conversion treats what its result type cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Casting {
    /// Whether floats of 8 bits end at their greatest number, not at infinity or NaN.
    pub saturate: bool,
    /// How a number becomes the power of two that `F8E8M0` holds.
    pub round: ScaleRounding,
}

impl Default for Casting {
    fn default() -> Self {
        Self { saturate: true, round: ScaleRounding::Up }
    }
}

/// Which power of two stands for a number between two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleRounding {
    Up,
    Down,
    /// The nearest in value, the higher one in the middle.
    Nearest,
}

/// What the codes beyond the numbers mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    /// The highest exponent holds infinity and NaN, as in IEEE 754.
    Ieee,
    /// All ones is NaN; there is no infinity.
    AllOnes,
    /// The code of −0 is NaN; there is no infinity.
    NegativeZero,
    /// Every code is a number.
    None,
}

/// A layout: sign, exponent, mantissa.
#[derive(Clone, Copy)]
pub(crate) struct Minifloat {
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    special: Special,
}

impl Minifloat {
    /// The layout of a type; `None` for all but the small floats with a mantissa.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        let (exponent_bits, mantissa_bits, bias, special) = match dtype {
            DType::F8E4M3FN => (4, 3, 7, Special::AllOnes),
            DType::F8E4M3FNUZ => (4, 3, 8, Special::NegativeZero),
            DType::F8E5M2 => (5, 2, 15, Special::Ieee),
            DType::F8E5M2FNUZ => (5, 2, 16, Special::NegativeZero),
            DType::F6E2M3 => (2, 3, 1, Special::None),
            DType::F6E3M2 => (3, 2, 3, Special::None),
            DType::F4E2M1 => (2, 1, 1, Special::None),
            _ => return None,
        };
        Some(Self { exponent_bits, mantissa_bits, bias, special })
    }

    fn sign_bit(self) -> u8 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    /// The code of the greatest number.
    fn max_code(self) -> u8 {
        let all_ones = self.sign_bit() - 1;
        match self.special {
            Special::Ieee => all_ones - (1 << self.mantissa_bits),
            Special::AllOnes => all_ones - 1,
            Special::NegativeZero | Special::None => all_ones,
        }
    }

    pub(crate) fn decode(self, code: u8) -> f32 {
        let sign = if code & self.sign_bit() == 0 { 1.0 } else { -1.0 };
        let magnitude = code & (self.sign_bit() - 1);
        if self.special == Special::NegativeZero && code == self.sign_bit() {
            return f32::NAN;
        }
        if magnitude > self.max_code() {
            let infinity = self.max_code() + 1;
            let is_infinite = self.special == Special::Ieee && magnitude == infinity;
            return if is_infinite { f32::INFINITY * sign } else { f32::NAN.copysign(sign) };
        }
        let exponent = i32::from(magnitude >> self.mantissa_bits);
        let mantissa = magnitude & ((1 << self.mantissa_bits) - 1);
        let implied = if exponent == 0 { 0 } else { 1 << self.mantissa_bits };
        let step = exponent.max(1) - self.bias - self.mantissa_bits as i32;
        sign * f32::from(mantissa + implied) * (step as f32).exp2()
    }

    /// The nearest code, half to even.
    pub(crate) fn encode(self, x: f64, saturate: bool) -> u8 {
        let sign = if x.is_sign_negative() { self.sign_bit() } else { 0 };
        if x.is_nan() {
            return match self.special {
                // A type without NaN takes −0, as the reference implementation does.
                Special::NegativeZero | Special::None => self.sign_bit(),
                Special::AllOnes => (self.sign_bit() - 1) | sign,
                Special::Ieee => (self.max_code() + 1) | 1 << (self.mantissa_bits - 1) | sign,
            };
        }
        let least_exponent = 1 - self.bias;
        // Numbers below the least normal one share its step; so does 0, whose exponent bits are 0.
        let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
        let exponent = exponent.max(least_exponent);
        let step = f64::from(exponent - self.mantissa_bits as i32).exp2();
        let units = (x.abs() / step).round_ties_even();
        let code = f64::from((exponent - least_exponent) << self.mantissa_bits) + units;
        if code > f64::from(self.max_code()) {
            return self.beyond(sign, saturate);
        }
        let code = code as u8;
        if code == 0 && self.special == Special::NegativeZero { 0 } else { code | sign }
    }

    /// What stands for a number too great.
    fn beyond(self, sign: u8, saturate: bool) -> u8 {
        match self.special {
            _ if saturate => self.max_code() | sign,
            Special::Ieee => (self.max_code() + 1) | sign,
            Special::AllOnes => (self.sign_bit() - 1) | sign,
            Special::NegativeZero => self.sign_bit(),
            Special::None => self.max_code() | sign,
        }
    }
}

/// NaN of `F8E8M0`.
const SCALE_NAN: u8 = 255;

/// 2^(code − 127), or NaN.
pub(crate) fn decode_scale(code: u8) -> f32 {
    if code == SCALE_NAN { f32::NAN } else { (f32::from(code) - 127.0).exp2() }
}

/// The power of two that stands for `x`; NaN for numbers below 0, which the type has not.
pub(crate) fn encode_scale(x: f64, casting: Casting) -> u8 {
    let (least, greatest) = (f64::from(-127.0_f32).exp2(), f64::from(127.0_f32).exp2());
    if x.is_nan() || x < 0.0 {
        return SCALE_NAN;
    }
    if x < least {
        return if casting.saturate { 0 } else { SCALE_NAN };
    }
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    let mantissa = x.to_bits() & ((1 << 52) - 1);
    let goes_up = match casting.round {
        ScaleRounding::Up => mantissa != 0,
        ScaleRounding::Down => false,
        ScaleRounding::Nearest => mantissa >= 1 << 51,
    };
    let code = exponent + 127 + i32::from(goes_up);
    match u8::try_from(code) {
        Ok(code) if code < SCALE_NAN && (casting.saturate || x <= greatest) => code,
        _ if casting.saturate => SCALE_NAN - 1,
        _ => SCALE_NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: [DType; 7] = [
        DType::F8E4M3FN,
        DType::F8E4M3FNUZ,
        DType::F8E5M2,
        DType::F8E5M2FNUZ,
        DType::F4E2M1,
        DType::F6E2M3,
        DType::F6E3M2,
    ];

    #[test]
    fn every_number_is_the_code_it_came_from() {
        for dtype in TYPES {
            let float = Minifloat::of(dtype).unwrap();
            for code in 0..=float.sign_bit() | (float.sign_bit() - 1) {
                let x = float.decode(code);
                if !x.is_nan() {
                    assert_eq!(float.encode(f64::from(x), false), code, "{dtype} {code} {x}");
                }
            }
        }
    }

    #[test]
    fn the_greatest_numbers_are_those_of_the_papers() {
        let greatest = TYPES.map(|dtype| {
            let float = Minifloat::of(dtype).unwrap();
            float.decode(float.max_code())
        });
        assert_eq!(greatest, [448.0, 240.0, 57344.0, 57344.0, 6.0, 7.5, 28.0]);
    }

    #[test]
    fn ties_go_to_even() {
        let float = Minifloat::of(DType::F4E2M1).unwrap();
        let values = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 100.0, -0.25];
        let rounded = values.map(|x| float.decode(float.encode(x, true)));
        assert_eq!(rounded, [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, -0.0]);
    }

    #[test]
    fn what_is_too_great_saturates_only_when_asked() {
        let codes = |dtype, saturate| Minifloat::of(dtype).unwrap().encode(-1e9, saturate);
        assert_eq!(codes(DType::F8E4M3FN, true), 0xfe);
        assert_eq!(codes(DType::F8E4M3FN, false), 0xff);
        assert_eq!(codes(DType::F8E4M3FNUZ, false), 0x80);
        assert_eq!(codes(DType::F8E5M2, false), 0xfc);
        assert_eq!(codes(DType::F8E5M2FNUZ, false), 0x80);
    }

    #[test]
    fn scales_are_powers_of_two() {
        let code = |x, round| encode_scale(x, Casting { saturate: true, round });
        assert_eq!(code(1.0, ScaleRounding::Up), 127);
        assert_eq!(code(1.1, ScaleRounding::Up), 128);
        assert_eq!(code(1.9, ScaleRounding::Down), 127);
        assert_eq!(code(1.5, ScaleRounding::Nearest), 128);
        assert_eq!(code(0.0, ScaleRounding::Up), 0);
        assert_eq!(code(f64::INFINITY, ScaleRounding::Up), 254);
        assert_eq!(code(f64::NAN, ScaleRounding::Up), 255);
        let strict = Casting { saturate: false, round: ScaleRounding::Nearest };
        assert_eq!(encode_scale(0.0, strict), 255);
        assert_eq!(decode_scale(130), 8.0);
    }
}
