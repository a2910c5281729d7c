//! `QuantizeLinear` (opset 10; per axis from 13, by blocks from 21): q = clamp(round(x / scale) +
//! `zero_point`), round half to even; for floats of 8 bits and fewer, the nearest to x / scale.

use attar_graph::Node;
use attar_tensor::{Casting, DType, Tensor, bf16, f16};

use crate::cast::casting;
use crate::kernels::{for_rows, quantize};
use crate::onnx_type::dtype_attribute;
use crate::quantization::{Parameters, integer_zero};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct QuantizeLinear;

/// The quantized type: that of the zero point, or of the attribute, or u8.
pub(crate) fn target(node: &Node, zero_point: Option<DType>) -> Result<DType, OpError> {
    let asked = dtype_attribute(node, "output_dtype")?;
    if let (Some(asked), Some(found)) = (asked, zero_point)
        && asked != found
    {
        return Err(OpError::value("the zero point's type", found.name(), asked.name()));
    }
    let dtype = zero_point.or(asked).unwrap_or(DType::U8);
    if integer_range(dtype).is_some() || is_small_float(dtype) {
        return Ok(dtype);
    }
    Err(OpError::Unsupported { what: format!("quantizing to {dtype}") })
}

/// The least and the greatest integer of a quantized type.
pub(crate) fn integer_range(dtype: DType) -> Option<(i64, i64)> {
    Some(match dtype {
        DType::U8 => (0, 255),
        DType::I8 => (-128, 127),
        DType::U16 => (0, 65_535),
        DType::I16 => (-32_768, 32_767),
        DType::U4 => (0, 15),
        DType::I4 => (-8, 7),
        DType::U2 => (0, 3),
        DType::I2 => (-2, 1),
        _ => return None,
    })
}

pub(crate) fn is_small_float(dtype: DType) -> bool {
    use DType::{F4E2M1, F6E2M3, F6E3M2, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ};
    matches!(dtype, F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F6E2M3 | F6E3M2 | F4E2M1)
}

impl Operator for QuantizeLinear {
    fn op_type(&self) -> &'static str {
        "QuantizeLinear"
    }

    fn since_opset(&self) -> i64 {
        10
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let zero_point = inputs.get(2).copied().flatten().map(|fact| fact.dtype);
        Ok(vec![required(inputs, 0)?.with_dtype(target(node, zero_point)?)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        let (axis, block_size) = (node.int_or("axis", 1)?, node.int_or("block_size", 0)?);
        let (precision, casting) = (dtype_attribute(&node, "precision")?, casting(&node)?);
        Ok(Box::new(move |run: &mut Run| {
            let (x, scale) = (run.input(0)?, run.input(1)?);
            let dtype = target(&node, run.optional(2).map(Tensor::dtype))?;
            if is_small_float(dtype) {
                let parameters = Parameters::new(run, axis, block_size, Tensor::to_f32)?;
                return to_floats(x, &parameters, dtype, casting).map(|y| vec![y]);
            }
            let parameters = Parameters::new(run, axis, block_size, integer_zero)?;
            let is_plain = x.dtype() == DType::F32 && scale.dtype() == DType::F32;
            let mut y = run.pool.tensor(dtype, x.shape());
            match dtype {
                DType::U8 if is_plain && precision.is_none() => {
                    let (y, x) = (y.slice_mut::<u8>(), x.slice::<f32>());
                    parameters.each_run(y, x, quantize::quantize_u8);
                }
                DType::I8 if is_plain && precision.is_none() => {
                    let (y, x) = (y.slice_mut::<i8>(), x.slice::<f32>());
                    parameters.each_run(y, x, quantize::quantize_i8);
                }
                _ => {
                    let quotient = quotient_of(precision.unwrap_or(scale.dtype()))?;
                    y = to_integers(x, &parameters, dtype, quotient)?;
                }
            }
            Ok(vec![y])
        }))
    }
}

/// x / scale, rounded to the type that the division is asked in.
fn quotient_of(precision: DType) -> Result<fn(f32, f32) -> f32, OpError> {
    match precision {
        DType::F32 | DType::F8E8M0 | DType::I32 => Ok(|x, scale| x / scale),
        DType::F16 => Ok(|x, scale| f16::from_f32(x / scale).to_f32()),
        DType::BF16 => Ok(|x, scale| bf16::from_f32(x / scale).to_f32()),
        other => Err(OpError::Unsupported { what: format!("a division in {other}") }),
    }
}

fn values(x: &Tensor) -> Result<Vec<f32>, OpError> {
    let is_taken = matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16 | DType::I32);
    x.to_f32().filter(|_| is_taken).ok_or(OpError::DType { index: 0, found: x.dtype() })
}

fn to_integers(
    x: &Tensor,
    parameters: &Parameters<i32>,
    dtype: DType,
    quotient: fn(f32, f32) -> f32,
) -> Result<Tensor, OpError> {
    let (low, high) = integer_range(dtype).expect("the type was checked");
    let x_values = values(x)?;
    let mut q = vec![0_i32; x_values.len()];
    for_rows(&mut q, 1, |first, q| {
        for (i, q) in q.iter_mut().enumerate() {
            let (scale, zero) = parameters.of(first + i);
            let level = quotient(x_values[first + i], scale).round_ties_even();
            // The conversion saturates, and both ends lie within i32.
            *q = (level as i64).saturating_add(i64::from(zero)).clamp(low, high) as i32;
        }
    });
    let y = Tensor::new(x.shape(), &q).converted(dtype);
    y.map_err(|_| OpError::Unsupported { what: format!("quantizing to {dtype}") })
}

fn to_floats(
    x: &Tensor,
    parameters: &Parameters<f32>,
    dtype: DType,
    casting: Casting,
) -> Result<Tensor, OpError> {
    let mut levels = values(x)?;
    for_rows(&mut levels, 1, |first, levels| {
        for (i, x) in levels.iter_mut().enumerate() {
            let (scale, zero) = parameters.of(first + i);
            *x = *x / scale + zero;
        }
    });
    let y = Tensor::new(x.shape(), &levels).cast(dtype, casting);
    y.map_err(|_| OpError::Unsupported { what: format!("quantizing to {dtype}") })
}
