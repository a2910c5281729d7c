//! Elements as words of their size, for operators that move values without reading them.

use attar_tensor::Tensor;
use bytemuck::Pod;

use crate::OpError;

/// The elements as words. The width must be that of the tensor's type.
pub(crate) fn words<T: Pod>(tensor: &Tensor) -> &[T] {
    bytemuck::cast_slice(tensor.bytes())
}

pub(crate) fn words_mut<T: Pod>(tensor: &mut Tensor) -> &mut [T] {
    use attar_tensor::DType;
    // A view by the tensor's own type first: only that type may be borrowed for writing.
    macro_rules! own {
        ($($dtype:ident => $ty:ty),*) => {
            match tensor.dtype() {
                $(DType::$dtype => bytemuck::cast_slice_mut(tensor.slice_mut::<$ty>()),)*
                other => unreachable!("{other} was refused by `check_movable`"),
            }
        };
    }
    own!(F32 => f32, F64 => f64, F16 => attar_tensor::f16, BF16 => attar_tensor::bf16,
         I64 => i64, I32 => i32, I16 => i16, I8 => i8, U64 => u64, U32 => u32, U16 => u16,
         U8 => u8, Bool => u8)
}

/// Whether elements are whole bytes of a type that a kernel can move.
pub(crate) fn check_movable(index: usize, tensor: &Tensor) -> Result<(), OpError> {
    use attar_tensor::DType::{BF16, Bool, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
    match tensor.dtype() {
        F32 | F64 | F16 | BF16 | I64 | I32 | I16 | I8 | U64 | U32 | U16 | U8 | Bool => Ok(()),
        found => Err(OpError::DType { index, found }),
    }
}

/// Runs `$body` with `$word` naming the unsigned integer as wide as the tensor's elements.
macro_rules! by_width {
    ($tensor:expr, $word:ident => $body:expr) => {
        match $tensor.dtype().bits() {
            8 => {
                type $word = u8;
                $body
            }
            16 => {
                type $word = u16;
                $body
            }
            32 => {
                type $word = u32;
                $body
            }
            _ => {
                type $word = u64;
                $body
            }
        }
    };
}
pub(crate) use by_width;
