//! Operators over quantized tensors, ONNX's and ONNX Runtime's: integers in, and integers or f32
//! out.

mod binary;
mod blocks;
mod gather_blocks;
mod gather_rows;
mod gemm;
mod integers;
mod level_table;
mod lookup;
mod matmul;
mod pool;
mod softmax;
mod to_float;

pub(crate) use binary::{QLinearAdd, QLinearMul};
pub(crate) use blocks::MatMulNBits;
pub(crate) use gather_blocks::GatherBlockQuantized;
pub(crate) use gather_rows::DequantizedGather;
pub(crate) use gemm::QGemm;
pub(crate) use integers::{Integers, column_scales, left_zeros, product_rows, unsigned};
pub(crate) use level_table::LevelTable;
pub(crate) use lookup::{QLinearConcat, QLinearLeakyRelu, QLinearSigmoid};
pub(crate) use matmul::QLinearMatMul;
pub(crate) use pool::{QLinearAveragePool, QLinearGlobalAveragePool};
pub(crate) use softmax::QLinearSoftmax;
pub(crate) use to_float::{DynamicQuantizeMatMul, MatMulIntegerToFloat};

use attar_tensor::{DType, Tensor};

use crate::kernels::quantize;
use crate::{OpError, Run};

/// Scale and zero point of a whole tensor: real = (q − zero) · scale.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Affine {
    pub(crate) scale: f32,
    pub(crate) zero_point: i32,
}

impl Affine {
    /// From a scalar scale and a scalar zero point, which may be absent (0).
    pub(crate) fn new(run: &Run, scale: usize, zero_point: usize) -> Result<Self, OpError> {
        let scale = one(run.typed::<f32>(scale)?, scale)?.values::<f32>()[0];
        let zero_point = match run.optional(zero_point) {
            Some(tensor) => {
                let error = OpError::DType { index: zero_point, found: tensor.dtype() };
                one(tensor, zero_point)?.to_i64().ok_or(error)?[0] as i32
            }
            None => 0,
        };
        Ok(Self { scale, zero_point })
    }

    pub(crate) fn value(self, level: i32) -> f32 {
        (level - self.zero_point) as f32 * self.scale
    }
}

/// A tensor of one element.
fn one(tensor: &Tensor, index: usize) -> Result<&Tensor, OpError> {
    if tensor.element_count() == 1 {
        return Ok(tensor);
    }
    Err(OpError::value(&format!("input {index}"), tensor.shape(), "one element"))
}

/// The bytes of an 8-bit tensor.
pub(crate) fn byte_levels(tensor: &Tensor, index: usize) -> Result<&[u8], OpError> {
    match tensor.dtype() {
        DType::U8 => Ok(tensor.slice::<u8>()),
        DType::I8 => Ok(bytemuck::cast_slice(tensor.slice::<i8>())),
        found => Err(OpError::DType { index, found }),
    }
}

/// The bytes of an 8-bit tensor, for writing.
pub(crate) fn byte_levels_mut(tensor: &mut Tensor) -> &mut [u8] {
    match tensor.dtype() {
        DType::I8 => bytemuck::cast_slice_mut(tensor.slice_mut::<i8>()),
        _ => tensor.slice_mut::<u8>(),
    }
}

/// Refuses what is not an 8-bit integer type.
pub(crate) fn check_8_bit(dtype: DType, index: usize) -> Result<(), OpError> {
    match dtype {
        DType::U8 | DType::I8 => Ok(()),
        found => Err(OpError::DType { index, found }),
    }
}

/// The level of a byte of the type.
pub(crate) fn level(byte: u8, dtype: DType) -> i32 {
    if dtype == DType::I8 { i32::from(byte as i8) } else { i32::from(byte) }
}

/// Quantizes to bytes of the type.
pub(crate) fn quantize_bytes(out: &mut [u8], x: &[f32], affine: Affine, dtype: DType) {
    if dtype == DType::I8 {
        let out = bytemuck::cast_slice_mut(out);
        quantize::quantize_i8(out, x, affine.scale, affine.zero_point);
    } else {
        quantize::quantize_u8(out, x, affine.scale, affine.zero_point);
    }
}

/// Rescales integer sums to bytes of the type, by one scale per column.
pub(crate) fn requantize_bytes(
    out: &mut [u8],
    sums: &[i32],
    scales: &[f32],
    zero_point: i32,
    dtype: DType,
) {
    if dtype == DType::I8 {
        let out = bytemuck::cast_slice_mut(out);
        quantize::requantize_row_i8(out, sums, scales, zero_point);
    } else {
        quantize::requantize_row_u8(out, sums, scales, zero_point);
    }
}
