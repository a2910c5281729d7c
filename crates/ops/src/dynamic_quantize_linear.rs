//! `DynamicQuantizeLinear` (opset 11): quantizes to u8 by the range of the tensor at hand.
//!
//! The range is that of the whole batch, so what comes out for one example depends on the others.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::kernels::{elementwise, for_rows, quantize};
use crate::{Fact, Kernel, OpError, Operator, Pool, Run, required};

pub(crate) struct DynamicQuantizeLinear;

impl Operator for DynamicQuantizeLinear {
    fn op_type(&self) -> &'static str {
        "DynamicQuantizeLinear"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![
            required(inputs, 0)?.with_dtype(DType::U8),
            Fact::new(DType::F32, Vec::new()),
            Fact::new(DType::U8, Vec::new()),
        ])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            let x = run.typed::<f32>(0)?;
            let (q, scale, zero_point) = quantized_by_range(x, run.pool);
            Ok(vec![q, Tensor::scalar(scale), Tensor::scalar(zero_point)])
        }))
    }
}

/// An f32 tensor as u8, with its scale and zero point.
pub(crate) fn quantized_by_range(x: &Tensor, pool: &Pool) -> (Tensor, f32, u8) {
    let (low, high) = elementwise::min_max(x.slice::<f32>());
    // The range always holds 0, so that zero padding stays exact.
    let (low, high) = (low.min(0.0), high.max(0.0));
    let range = (high - low) / 255.0;
    let scale = if range == 0.0 { 1.0 } else { range };
    let zero_point = (-low / scale).clamp(0.0, 255.0).round_ties_even() as u8;
    let mut q = pool.tensor(DType::U8, x.shape());
    let x = x.slice::<f32>();
    for_rows(q.slice_mut::<u8>(), 1, |first, q| {
        let x = &x[first..first + q.len()];
        quantize::quantize_u8(q, x, scale, i32::from(zero_point));
    });
    (q, scale, zero_point)
}
