//! Conversions between element types, with ONNX `Cast` semantics.

use half::{bf16, f16};

use crate::{DType, Tensor, TensorError};

impl Tensor {
    /// Elements converted to `to`: floats to integers truncate toward zero and saturate, anything
    /// to bool is `!= 0`.
    ///
    /// # Errors
    /// When either type is not a float, an integer of at least 8 bits, or bool.
    pub fn converted(&self, to: DType) -> Result<Self, TensorError> {
        if self.dtype() == to {
            return Ok(self.clone());
        }
        let error = || TensorError::Conversion { from: self.dtype(), to };
        if is_integer(self.dtype()) && !to.is_float() {
            return from_integers(self.shape(), &self.to_i64().ok_or_else(error)?, to)
                .ok_or_else(error);
        }
        from_floats(self.shape(), &self.to_f64().ok_or_else(error)?, to).ok_or_else(error)
    }

    /// Elements as f32, or `None` for types without numbers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        Some(match self.dtype() {
            DType::F32 => self.values::<f32>().into_owned(),
            DType::F16 => self.values::<f16>().iter().map(|x| x.to_f32()).collect(),
            DType::BF16 => self.values::<bf16>().iter().map(|x| x.to_f32()).collect(),
            _ => self.to_f64()?.into_iter().map(|x| x as f32).collect(),
        })
    }

    /// Elements as f64, or `None` for types without numbers.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        Some(match self.dtype() {
            DType::F64 => self.values::<f64>().into_owned(),
            DType::F32 => self.values::<f32>().iter().map(|&x| x as f64).collect(),
            DType::F16 => self.values::<f16>().iter().map(|x| x.to_f64()).collect(),
            DType::BF16 => self.values::<bf16>().iter().map(|x| x.to_f64()).collect(),
            DType::U64 => self.values::<u64>().iter().map(|&x| x as f64).collect(),
            _ => self.to_i64()?.into_iter().map(|x| x as f64).collect(),
        })
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
            _ => return None,
        })
    }
}

fn is_integer(dtype: DType) -> bool {
    use DType::{Bool, I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64 | Bool)
}

fn from_integers(shape: &[usize], values: &[i64], to: DType) -> Option<Tensor> {
    macro_rules! wrap {
        ($ty:ty) => {
            Tensor::new(shape, &values.iter().map(|&x| x as $ty).collect::<Vec<_>>())
        };
    }
    Some(match to {
        DType::I64 => Tensor::new(shape, values),
        DType::I32 => wrap!(i32),
        DType::I16 => wrap!(i16),
        DType::I8 => wrap!(i8),
        DType::U64 => wrap!(u64),
        DType::U32 => wrap!(u32),
        DType::U16 => wrap!(u16),
        DType::U8 => wrap!(u8),
        DType::Bool => {
            Tensor::from_bools(shape, &values.iter().map(|&x| x != 0).collect::<Vec<_>>())
        }
        _ => return None,
    })
}

fn from_floats(shape: &[usize], values: &[f64], to: DType) -> Option<Tensor> {
    macro_rules! saturate {
        ($ty:ty) => {
            Tensor::new(shape, &values.iter().map(|&x| x as $ty).collect::<Vec<_>>())
        };
    }
    Some(match to {
        DType::F64 => Tensor::new(shape, values),
        DType::F32 => saturate!(f32),
        // By way of f32, as ONNX Runtime does: `half` cuts an f64 to 20 bits of mantissa before it
        // rounds, and so takes for a tie what lies just above one.
        DType::F16 => {
            let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x as f32)).collect();
            Tensor::new(shape, &halves)
        }
        DType::BF16 => {
            let halves: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x as f32)).collect();
            Tensor::new(shape, &halves)
        }
        DType::I64 => saturate!(i64),
        DType::I32 => saturate!(i32),
        DType::I16 => saturate!(i16),
        DType::I8 => saturate!(i8),
        DType::U64 => saturate!(u64),
        DType::U32 => saturate!(u32),
        DType::U16 => saturate!(u16),
        DType::U8 => saturate!(u8),
        DType::Bool => {
            Tensor::from_bools(shape, &values.iter().map(|&x| x != 0.0).collect::<Vec<_>>())
        }
        _ => return None,
    })
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
        let halves = floats.converted(DType::F16).unwrap();
        assert_eq!(halves.to_f32().unwrap(), [1.0 + ulp, 1.0]);
    }

    #[test]
    fn strings_do_not_convert() {
        let strings = Tensor::from_strings(&[0], vec![]).unwrap();
        assert!(strings.converted(DType::F32).is_err());
    }
}
