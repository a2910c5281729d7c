//! `DequantizeLinear` (opset 10; per axis from 13): x = (q − `zero_point`) · scale. 8-bit types, and
//! i32 for biases.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::kernels::quantize;
use crate::quantize_linear::{Parameters, each_run};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct DequantizeLinear;

impl Operator for DequantizeLinear {
    fn op_type(&self) -> &'static str {
        "DequantizeLinear"
    }

    fn since_opset(&self) -> i64 {
        10
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![required(inputs, 0)?.with_dtype(required(inputs, 1)?.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let axis = node.int_or("axis", 1)?;
        Ok(Box::new(move |run: &mut Run| {
            let q = run.input(0)?;
            let parameters = Parameters::new(run, axis)?;
            let mut x = run.pool.tensor(DType::F32, q.shape());
            let out = x.slice_mut::<f32>();
            match q.dtype() {
                DType::U8 => each_run(out, q.slice::<u8>(), &parameters, quantize::dequantize_u8),
                DType::I8 => each_run(out, q.slice::<i8>(), &parameters, quantize::dequantize_i8),
                DType::I32 => each_run(out, q.slice::<i32>(), &parameters, |x, q, scale, zero| {
                    x.iter_mut().zip(q).for_each(|(x, &q)| *x = (q - zero) as f32 * scale);
                }),
                found => return Err(OpError::DType { index: 0, found }),
            }
            Ok(vec![x])
        }))
    }
}
