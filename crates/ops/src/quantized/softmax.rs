//! `QLinearSoftmax` of ONNX Runtime: softmax of dequantized rows, quantized again, in integers:
//! e to the power of every level below the greatest is held in a table of 32-bit counts, so that
//! every CPU gives the same levels.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use super::{Affine, byte_levels, byte_levels_mut};
use crate::fact::resolve_axis;
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Run, required};

pub(crate) struct QLinearSoftmax;

impl Operator for QLinearSoftmax {
    fn op_type(&self) -> &'static str {
        "QLinearSoftmax"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        5..=5
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let axis = node.int_or("axis", -1)?;
        // Up to opset 12, all axes from `axis` on count as one.
        let is_flat = node.int_or("opset", 13)? < 13;
        Ok(Box::new(move |run: &mut Run| softmax(run, axis, is_flat)))
    }
}

fn softmax(run: &mut Run, axis: i64, is_flat: bool) -> Result<Vec<Tensor>, OpError> {
    let input = run.input(0)?;
    let (x, y) = (Affine::new(run, 1, 2)?, Affine::new(run, 3, 4)?);
    let levels = byte_levels(input, 0)?;
    let axis = resolve_axis(axis, input.rank())
        .ok_or_else(|| OpError::value("axis", axis, format!("below {}", input.rank())))?;
    let shape = input.shape();
    let inner = if is_flat { 1 } else { shape[axis + 1..].iter().product::<usize>() };
    let size = if is_flat { shape[axis..].iter().product() } else { shape[axis] };
    let mut output = run.pool.tensor(input.dtype(), shape);
    if size == 0 || inner == 0 {
        return Ok(vec![output]);
    }
    let flip = if input.dtype() == DType::I8 { 0x80 } else { 0 };
    let row = Row {
        table: powers(x.scale, size),
        one: f64::from(1.0 / y.scale).round() as u64,
        zero_point: i64::from(y.zero_point),
        is_signed: input.dtype() == DType::I8,
    };
    let out = byte_levels_mut(&mut output);
    let mut gathered = vec![0; size];
    for (block, levels) in out.chunks_mut(size * inner).zip(levels.chunks(size * inner)) {
        for column in 0..inner {
            let at = |i: usize| i * inner + column;
            (0..size).for_each(|i| gathered[i] = levels[at(i)] ^ flip);
            row.normalize(&mut gathered);
            (0..size).for_each(|i| block[at(i)] = gathered[i]);
        }
    }
    Ok(vec![output])
}

/// exp((i − 255) · scale) as counts, of which `size` add up within 32 bits.
fn powers(scale: f32, size: usize) -> [u64; 256] {
    let unit = (f64::from(u32::MAX) / size as f64).min(f64::from(0x007f_ffff_u32));
    std::array::from_fn(|i| (((i as f64 - 255.0) * f64::from(scale)).exp() * unit).round() as u64)
}

/// How a row is normalized.
struct Row {
    table: [u64; 256],
    /// Levels that make 1.
    one: u64,
    zero_point: i64,
    is_signed: bool,
}

impl Row {
    /// Levels, as u8, to bytes of the output's type.
    fn normalize(&self, levels: &mut [u8]) {
        let shift = 255 - usize::from(levels.iter().copied().max().unwrap_or(0));
        let power = |level: u8| self.table[usize::from(level) + shift];
        let sum: u64 = levels.iter().map(|&level| power(level)).sum();
        let (low, high) = if self.is_signed { (-128, 127) } else { (0, 255) };
        for level in levels {
            let share = (power(*level) * self.one + sum / 2) / sum.max(1);
            let result = i64::try_from(share).unwrap_or(high).saturating_add(self.zero_point);
            *level = result.clamp(low, high) as u8;
        }
    }
}
