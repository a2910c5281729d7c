//! Conversions between element types, with ONNX `Cast` semantics.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::minifloat::{Minifloat, decode_scale, encode_scale};
use crate::packed::sign_extended;
use crate::{Casting, DType, Element, Tensor, TensorError};

/// Runs `$body` with `$ty` naming the Rust type of the elements: integers, bool, f32, f64.
macro_rules! by_native {
    ($dtype:expr, $ty:ident => $body:expr, _ => $else:expr) => {{
        macro_rules! arm {
            ($name:ident) => {{
                type $ty = $name;
                $body
            }};
        }
        match $dtype {
            DType::F32 => arm!(f32),
            DType::F64 => arm!(f64),
            DType::I64 => arm!(i64),
            DType::I32 => arm!(i32),
            DType::I16 => arm!(i16),
            DType::I8 => arm!(i8),
            DType::U64 => arm!(u64),
            DType::U32 => arm!(u32),
            DType::U16 => arm!(u16),
            DType::U8 => arm!(u8),
            _ => $else,
        }
    }};
}

impl Tensor {
    /// Elements converted to `to`: floats to integers truncate toward zero and saturate, integers
    /// to smaller ones lose their high bits, anything to bool is `!= 0`, small floats round half to
    /// even and saturate, strings are read and written as decimals.
    ///
    /// # Errors
    /// When either type is complex, or a string is no number.
    pub fn converted(&self, to: DType) -> Result<Self, TensorError> {
        self.cast(to, Casting::default())
    }

    /// As [`converted`](Self::converted), with the attributes of `Cast`.
    ///
    /// # Errors
    /// As [`converted`](Self::converted).
    pub fn cast(&self, to: DType, casting: Casting) -> Result<Self, TensorError> {
        let from = self.dtype();
        if from == to {
            return Ok(self.clone());
        }
        if from == DType::String {
            return self.parsed(to);
        }
        if to == DType::String {
            return self.to_text();
        }
        let error = || TensorError::Conversion { from, to };
        match from {
            DType::Bool => by_native!(to, To => Ok(self.mapped::<u8, To>(|x| x as To)),
                                      _ => self.via_f64(to, casting).ok_or_else(error)),
            DType::I4 | DType::I2 | DType::U4 | DType::U2 => {
                let wide = Self::new(self.shape(), &self.to_i64().ok_or_else(error)?);
                wide.cast(to, casting)
            }
            _ => by_native!(from, From => self.cast_native::<From>(to, casting).ok_or_else(error),
                            _ => self.cast_small(to, casting).ok_or_else(error)),
        }
    }

    fn mapped<A: Element, B: Element>(&self, convert: impl Fn(A) -> B) -> Self {
        let values: Vec<B> = self.values::<A>().iter().map(|&x| convert(x)).collect();
        Self::new(self.shape(), &values)
    }

    fn cast_native<A: Native>(&self, to: DType, casting: Casting) -> Option<Self> {
        by_native!(to, To => return Some(self.mapped::<A, To>(A::native::<To>)), _ => {});
        if to == DType::Bool {
            let bools: Vec<bool> = self.values::<A>().iter().map(|&x| x != A::default()).collect();
            return Some(Self::from_bools(self.shape(), &bools));
        }
        if let (DType::F32, DType::F16 | DType::BF16) = (self.dtype(), to) {
            return Some(self.halved(to));
        }
        if matches!(to, DType::I4 | DType::I2 | DType::U4 | DType::U2) {
            let values = self.values::<A>();
            let codes: Vec<u8> = values.iter().map(|&x| A::native::<i64>(x) as u8).collect();
            return Some(Self::from_codes(to, self.shape(), &codes));
        }
        self.via_f64(to, casting)
    }

    /// f32 rounded to f16 or bf16.
    fn halved(&self, to: DType) -> Self {
        let values = self.values::<f32>();
        let mut half = Self::zeros(to, self.shape());
        match to {
            DType::F16 => half.slice_mut::<f16>().convert_from_f32_slice(&values),
            _ => half.slice_mut::<bf16>().convert_from_f32_slice(&values),
        }
        half
    }

    /// From f16, bf16 and smaller floats: through f32, which holds them all.
    fn cast_small(&self, to: DType, casting: Casting) -> Option<Self> {
        Self::new(self.shape(), &self.to_f32()?).cast(to, casting).ok()
    }

    fn via_f64(&self, to: DType, casting: Casting) -> Option<Self> {
        let (values, shape) = (self.to_f64()?, self.shape());
        let codes = |encode: &dyn Fn(f64) -> u8| {
            let codes: Vec<u8> = values.iter().map(|&x| encode(x)).collect();
            Some(Self::from_codes(to, shape, &codes))
        };
        match to {
            // By way of f32, as ONNX Runtime does: `half` cuts an f64 to 20 bits of mantissa before
            // it rounds, and so takes for a tie what lies just above one.
            DType::F16 | DType::BF16 => {
                let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
                Some(Self::new(shape, &values).halved(to))
            }
            DType::F8E8M0 => codes(&|x| encode_scale(x, casting)),
            DType::I4 | DType::I2 | DType::U4 | DType::U2 => codes(&|x| x as i64 as u8),
            _ => {
                let layout = Minifloat::of(to)?;
                codes(&|x| layout.encode(x, casting.saturate))
            }
        }
    }

    /// Elements as f32, or `None` for types without numbers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        Some(match self.dtype() {
            DType::F32 => self.values::<f32>().into_owned(),
            DType::F16 => self.values::<f16>().to_f32_vec(),
            DType::BF16 => self.values::<bf16>().to_f32_vec(),
            DType::I64 => self.values::<i64>().iter().map(|&x| x as f32).collect(),
            DType::U64 => self.values::<u64>().iter().map(|&x| x as f32).collect(),
            DType::F8E8M0 => self.codes()?.into_iter().map(decode_scale).collect(),
            dtype => match Minifloat::of(dtype) {
                Some(layout) => {
                    let numbers: Vec<f32> = (0..=255).map(|code| layout.decode(code)).collect();
                    self.codes()?.into_iter().map(|code| numbers[usize::from(code)]).collect()
                }
                None => self.to_f64()?.into_iter().map(|x| x as f32).collect(),
            },
        })
    }

    /// Elements as f64, or `None` for types without numbers.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        Some(match self.dtype() {
            DType::F64 => self.values::<f64>().into_owned(),
            DType::F32 => self.values::<f32>().iter().map(|&x| x as f64).collect(),
            DType::U64 => self.values::<u64>().iter().map(|&x| x as f64).collect(),
            _ => match self.to_i64() {
                Some(values) => values.into_iter().map(|x| x as f64).collect(),
                None if self.is_small_float() => {
                    self.to_f32()?.into_iter().map(f64::from).collect()
                }
                None => return None,
            },
        })
    }

    fn is_small_float(&self) -> bool {
        let dtype = self.dtype();
        matches!(dtype, DType::F16 | DType::BF16 | DType::F8E8M0) || Minifloat::of(dtype).is_some()
    }

    /// Elements of an integer or bool tensor as i64; `u64` wraps. `None` for other types.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        Some(match self.dtype() {
            DType::I64 => self.values::<i64>().into_owned(),
            DType::I32 => self.values::<i32>().iter().map(|&x| x as i64).collect(),
            DType::I16 => self.values::<i16>().iter().map(|&x| x as i64).collect(),
            DType::I8 => self.values::<i8>().iter().map(|&x| x as i64).collect(),
            DType::U64 => self.values::<u64>().iter().map(|&x| x as i64).collect(),
            DType::U32 => self.values::<u32>().iter().map(|&x| x as i64).collect(),
            DType::U16 => self.values::<u16>().iter().map(|&x| x as i64).collect(),
            DType::U8 | DType::Bool => self.values::<u8>().iter().map(|&x| x as i64).collect(),
            DType::I4 | DType::I2 => {
                let bits = self.dtype().bits();
                self.codes()?.into_iter().map(|code| sign_extended(code, bits)).collect()
            }
            DType::U4 | DType::U2 => self.codes()?.into_iter().map(i64::from).collect(),
            _ => return None,
        })
    }
}

/// A Rust number that `as` converts.
trait Native: Element + Default {
    fn native<B: FromNative>(self) -> B;
}

/// A Rust number that `as` converts to.
trait FromNative: Element {
    fn from_i64(x: i64) -> Self;
    fn from_u64(x: u64) -> Self;
    fn from_f64(x: f64) -> Self;
    fn from_f32(x: f32) -> Self;
}

macro_rules! natives {
    ($($ty:ty: $wide:ty, $from:ident;)*) => {$(
        impl Native for $ty {
            fn native<B: FromNative>(self) -> B {
                B::$from(self as $wide)
            }
        }

        impl FromNative for $ty {
            fn from_i64(x: i64) -> Self {
                x as $ty
            }

            fn from_u64(x: u64) -> Self {
                x as $ty
            }

            fn from_f64(x: f64) -> Self {
                x as $ty
            }

            fn from_f32(x: f32) -> Self {
                x as $ty
            }
        }
    )*};
}

natives! {
    f32: f32, from_f32;
    f64: f64, from_f64;
    i64: i64, from_i64;
    i32: i64, from_i64;
    i16: i64, from_i64;
    i8: i64, from_i64;
    u64: u64, from_u64;
    u32: u64, from_u64;
    u16: u64, from_u64;
    u8: u64, from_u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_truncate_toward_zero_and_large_integers_stay_exact() {
        let floats = Tensor::new(&[3], &[-1.7_f32, 1.7, 300.0]);
        assert_eq!(floats.converted(DType::U8).unwrap().slice::<u8>(), [0, 1, 255]);
        let large = Tensor::scalar(i64::MAX);
        assert_eq!(large.converted(DType::U64).unwrap().slice::<u64>(), [i64::MAX as u64]);
        let largest = Tensor::scalar(u64::MAX).converted(DType::F32).unwrap();
        assert_eq!(largest.slice::<f32>(), [18_446_744_073_709_551_615.0]);
    }

    #[test]
    fn halves_are_rounded_by_all_bits_of_the_mantissa() {
        // Just above the middle between 1 and its neighbour, and on it: up, and to even.
        let (ulp, least) = (2.0_f32.powi(-7), f32::EPSILON);
        let floats = Tensor::new(&[2], &[1.0 + ulp / 2.0 + least, 1.0 + ulp / 2.0]);
        let halves = floats.converted(DType::BF16).unwrap();
        assert_eq!(halves.to_f32().unwrap(), [1.0 + ulp, 1.0]);
        let ulp = 2.0_f32.powi(-10);
        let floats = Tensor::new(&[2], &[1.0 + ulp / 2.0 + least, 1.0 + ulp / 2.0]);
        let halves = floats.converted(DType::F64).unwrap().converted(DType::F16).unwrap();
        assert_eq!(halves.to_f32().unwrap(), [1.0 + ulp, 1.0]);
    }

    #[test]
    fn integers_lose_their_high_bits() {
        let x = Tensor::new(&[3], &[200_i16, -1, 5]);
        assert_eq!(x.converted(DType::I8).unwrap().slice::<i8>(), [-56, -1, 5]);
        assert_eq!(x.converted(DType::U4).unwrap().codes().unwrap(), [8, 15, 5]);
        let back = x.converted(DType::I4).unwrap().converted(DType::I32).unwrap();
        assert_eq!(back.slice::<i32>(), [-8, -1, 5]);
    }

    #[test]
    fn every_type_of_numbers_converts_to_every_other() {
        let is_complex = |dtype: &DType| matches!(dtype, DType::Complex64 | DType::Complex128);
        let types = || DType::ALL.into_iter().filter(|dtype| !is_complex(dtype));
        let one = Tensor::new(&[3], &[1.0_f32; 3]);
        for from in types() {
            let x = one.converted(from).unwrap();
            for to in types() {
                let back = x.converted(to).and_then(|y| y.converted(DType::F32)).unwrap();
                assert_eq!(back.slice::<f32>(), [1.0; 3], "{from} to {to}");
            }
        }
        assert!(one.converted(DType::Complex64).is_err());
    }
}
