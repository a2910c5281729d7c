//! `QuantizeDequantize`, made by fusion: `QuantizeLinear` and the `DequantizeLinear` after it in
//! one pass over the values, for what no 8-bit kernel takes.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::clip::in_place_or_copy;
use crate::kernels::{for_rows, quantize};
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

/// Inputs: x, and the constant scalars scale and zero point (u8).
pub(crate) struct QuantizeDequantize;

impl Operator for QuantizeDequantize {
    fn op_type(&self) -> &'static str {
        "QuantizeDequantize"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![required(inputs, 0)?.with_dtype(DType::F32)])
    }

    fn kernel(&self, _: &Node, constants: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let constant = |index: usize| {
            constants.get(index).copied().flatten().ok_or(OpError::MissingInput { index })
        };
        let (scale, zero) = (constant(1)?.values::<f32>()[0], constant(2)?.values::<u8>()[0]);
        Ok(Box::new(move |run: &mut Run| {
            run.typed::<f32>(0)?;
            let mut y = in_place_or_copy(run)?;
            for_rows(y.slice_mut::<f32>(), 1, |_, rows| {
                quantize::round_to_u8_grid(rows, scale, i32::from(zero));
            });
            Ok(vec![y])
        }))
    }
}
