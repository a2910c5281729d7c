//! `DequantizeLinear` (opset 10; per axis from 13, by blocks from 21): x = (q − `zero_point`) · scale.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::gradient::gradient;
use crate::kernels::{for_rows, quantize};
use crate::onnx_type::dtype_attribute;
use crate::quantization::{Parameters, integer_zero};
use crate::quantize_linear::is_small_float;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct DequantizeLinear;

/// The type of the results: as asked, or that of the scale; f32 for a scale without a mantissa.
fn target(node: &Node, scale: DType) -> Result<DType, OpError> {
    let of_scale = if scale == DType::F8E8M0 { DType::F32 } else { scale };
    let dtype = dtype_attribute(node, "output_dtype")?.unwrap_or(of_scale);
    if matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Ok(dtype);
    }
    Err(OpError::Unsupported { what: format!("dequantizing to {dtype}") })
}

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

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let dtype = target(node, required(inputs, 1)?.dtype)?;
        Ok(vec![required(inputs, 0)?.with_dtype(dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let (axis, block_size) = (node.int_or("axis", 1)?, node.int_or("block_size", 0)?);
        let node = node.clone();
        Ok(Box::new(move |run: &mut Run| {
            let q = run.input(0)?;
            let found = q.dtype();
            let dtype = target(&node, run.input(1)?.dtype())?;
            if let Some(zero) = run.optional(2).filter(|zero| zero.dtype() != found) {
                return Err(OpError::DType { index: 2, found: zero.dtype() });
            }
            let mut x = run.pool.tensor(DType::F32, q.shape());
            let out = x.slice_mut::<f32>();
            if is_small_float(found) {
                let parameters = Parameters::new(run, axis, block_size, Tensor::to_f32)?;
                let values = q.to_f32().ok_or(OpError::DType { index: 0, found })?;
                for_rows(out, 1, |first, out| {
                    for (i, out) in out.iter_mut().enumerate() {
                        let (scale, zero) = parameters.of(first + i);
                        *out = (values[first + i] - zero) * scale;
                    }
                });
            } else {
                let parameters = Parameters::new(run, axis, block_size, integer_zero)?;
                dequantize_integers(out, q, &parameters)?;
            }
            if dtype == DType::F32 {
                return Ok(vec![x]);
            }
            let narrow =
                x.converted(dtype).map_err(|_| OpError::DType { index: 1, found: dtype })?;
            run.pool.recycle(x);
            Ok(vec![narrow])
        }))
    }

    /// dscale = Σ dy·(q − zero).
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let (axis, block_size) = (node.int_or("axis", 1)?, node.int_or("block_size", 0)?);
        gradient(Reads::NOTHING.input(0).input(1).input(2), move |run| {
            let dy = run.take_gradient();
            let settings = Run { inputs: std::mem::take(&mut run.inputs), pool: run.pool };
            let found = settings.input(0)?.dtype();
            let q = settings.input(0)?.to_f32().ok_or(OpError::DType { index: 0, found })?;
            let parameters = Parameters::new(&settings, axis, block_size, Tensor::to_f32)?;
            let sums = parameters.sum_runs(dy.slice::<f32>(), &q, |dy, q, _, zero| {
                dy.iter().zip(q).map(|(&dy, q)| f64::from(dy) * f64::from(q - zero)).sum()
            });
            let mut dscale = run.tensor(run.shape(1));
            let to = dscale.slice_mut::<f32>().iter_mut();
            to.zip(sums).for_each(|(to, sum)| *to = sum as f32);
            run.pool.recycle(dy);
            Ok(vec![None, Some(dscale.into())])
        })
    }
}

fn dequantize_integers(
    out: &mut [f32],
    q: &Tensor,
    parameters: &Parameters<i32>,
) -> Result<(), OpError> {
    use DType::{I2, I4, I8, I16, I32, U2, U4, U8, U16};
    match q.dtype() {
        U8 => parameters.each_run(out, q.slice::<u8>(), quantize::dequantize_u8),
        I8 => parameters.each_run(out, q.slice::<i8>(), quantize::dequantize_i8),
        I32 => parameters.each_run(out, q.slice::<i32>(), dequantize_i32),
        I16 | U16 | I4 | U4 | I2 | U2 => {
            let values =
                q.converted(I32).map_err(|_| OpError::DType { index: 0, found: q.dtype() })?;
            parameters.each_run(out, values.slice::<i32>(), dequantize_i32);
        }
        found => return Err(OpError::DType { index: 0, found }),
    }
    Ok(())
}

fn dequantize_i32(x: &mut [f32], q: &[i32], scale: f32, zero: i32) {
    x.iter_mut().zip(q).for_each(|(x, &q)| *x = q.wrapping_sub(zero) as f32 * scale);
}
