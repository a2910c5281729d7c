//! f32 and f64 under one name, for kernels that compute in the type of their input.

use std::ops::{Add, AddAssign, Div, Mul, Sub};

use attar_tensor::{DType, Element, Tensor};

/// A float that kernels compute in.
pub(crate) trait Real:
    Element
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    const ZERO: Self;
    const ONE: Self;

    fn of(value: f64) -> Self;
    fn wide(self) -> f64;
    fn abs(self) -> Self;
    fn exp(self) -> Self;
    fn sqrt(self) -> Self;
    fn powf(self, exponent: Self) -> Self;
}

macro_rules! real {
    ($($ty:ident),*) => {$(
        impl Real for $ty {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;

            fn of(value: f64) -> Self {
                value as $ty
            }

            fn wide(self) -> f64 {
                f64::from(self)
            }

            fn abs(self) -> Self {
                $ty::abs(self)
            }

            fn exp(self) -> Self {
                $ty::exp(self)
            }

            fn sqrt(self) -> Self {
                $ty::sqrt(self)
            }

            fn powf(self, exponent: Self) -> Self {
                $ty::powf(self, exponent)
            }
        }
    )*};
}

real!(f32, f64);

/// Runs `$body` with `$real` naming the float type of a tensor that is input `$index`.
macro_rules! by_real {
    ($tensor:expr, $index:expr, $real:ident => $body:expr) => {
        match $tensor.dtype() {
            attar_tensor::DType::F32 => {
                type $real = f32;
                $body
            }
            attar_tensor::DType::F64 => {
                type $real = f64;
                $body
            }
            found => Err($crate::OpError::DType { index: $index, found }),
        }
    };
}
pub(crate) use by_real;

/// f16 and bf16 as f32, all others as they are.
pub(crate) fn widened(tensor: &Tensor) -> Tensor {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.converted(DType::F32).expect("floats convert to f32"),
        _ => tensor.clone(),
    }
}

/// A float tensor rounded to another float type.
pub(crate) fn rounded_to(dtype: DType, tensor: Tensor) -> Tensor {
    if tensor.dtype() == dtype {
        return tensor;
    }
    tensor.converted(dtype).expect("floats convert to floats")
}
