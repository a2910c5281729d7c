//! `QLinearSigmoid`, `QLinearLeakyRelu` and `QLinearConcat` of ONNX Runtime: each of the 256
//! levels is dequantized, put through the function and quantized once, into a table.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::{Affine, byte_levels, byte_levels_mut, check_8_bit, level, quantize_bytes};
use crate::fact::resolve_axis;
use crate::kernels::{elementwise, for_rows};
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Run, required};

/// What each byte of the type `from` becomes.
fn table(x: Affine, from: DType, y: Affine, to: DType, function: impl Fn(&mut [f32])) -> [u8; 256] {
    let mut values: [f32; 256] = std::array::from_fn(|byte| x.value(level(byte as u8, from)));
    function(&mut values);
    let mut table = [0; 256];
    quantize_bytes(&mut table, &values, y, to);
    table
}

macro_rules! unary {
    ($($op:ident, $node:ident => $function:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn domain(&self) -> &'static str {
                MICROSOFT_DOMAIN
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                4..=5
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                let x = required(inputs, 0)?;
                Ok(vec![x.with_dtype(x.dtype)])
            }

            fn kernel(
                &self,
                $node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let function = $function;
                Ok(Box::new(move |run: &mut Run| {
                    let (x, y) = (Affine::new(run, 1, 2)?, Affine::new(run, 3, 4)?);
                    let input = run.input(0)?;
                    let levels = byte_levels(input, 0)?;
                    let table = table(x, input.dtype(), y, input.dtype(), &function);
                    let mut output = run.pool.tensor(input.dtype(), input.shape());
                    for_rows(byte_levels_mut(&mut output), 1, |first, out| {
                        let terms = out.iter_mut().zip(&levels[first..]);
                        terms.for_each(|(out, &level)| *out = table[usize::from(level)]);
                    });
                    Ok(vec![output])
                }))
            }
        }
    )*};
}

unary! {
    QLinearSigmoid, _node => elementwise::sigmoid;
    QLinearLeakyRelu, node => leaky(node.float_or("alpha", 0.01)?);
}

fn leaky(alpha: f32) -> impl Fn(&mut [f32]) + Send + Sync {
    move |values| values.iter_mut().for_each(|x| *x = if *x < 0.0 { *x * alpha } else { *x })
}

/// Inputs: scale and zero point of y, then tensor, scale and zero point of each part.
pub(crate) struct QLinearConcat;

impl Operator for QLinearConcat {
    fn op_type(&self) -> &'static str {
        "QLinearConcat"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        5..=usize::MAX
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let dtype = required(inputs, 1)?.dtype;
        let parts: Option<Vec<&Vec<Dim>>> = (2..inputs.len())
            .step_by(3)
            .map(|index| inputs[index].and_then(|fact| fact.shape.as_ref()))
            .collect();
        let Some([first, rest @ ..]) = parts.as_deref() else {
            return Ok(vec![Fact::unranked(dtype)]);
        };
        let axis = resolve_axis(node.int_or("axis", 1)?, first.len())
            .ok_or_else(|| OpError::value("axis", "outside", format!("below {}", first.len())))?;
        let mut shape = (*first).clone();
        for part in rest {
            let size = part.get(axis).cloned().unwrap_or(Dim::Unknown);
            shape[axis] = &shape[axis] + &size;
        }
        Ok(vec![Fact::new(dtype, shape)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let axis = node.int_or("axis", 1)?;
        if node.inputs.len() % 3 != 2 {
            let expected = "two and three for each part";
            return Err(OpError::value("the count of inputs", node.inputs.len(), expected));
        }
        Ok(Box::new(move |run: &mut Run| concat(run, axis)))
    }
}

fn concat(run: &mut Run, axis: i64) -> Result<Vec<Tensor>, OpError> {
    let y_affine = Affine::new(run, 0, 1)?;
    let dtype = run.input(1)?.dtype();
    check_8_bit(dtype, 1)?;
    let first = run.input(2)?;
    let axis = resolve_axis(axis, first.rank())
        .ok_or_else(|| OpError::value("axis", axis, format!("below {}", first.rank())))?;
    let mut shape = first.shape().to_vec();
    shape[axis] = 0;
    for index in (2..run.inputs.len()).step_by(3) {
        let part = run.input(index)?;
        let mut expected = shape.clone();
        let size = part.shape().get(axis).copied().unwrap_or(0);
        expected[axis] = size;
        if part.shape() != expected {
            return Err(OpError::shapes(part.shape(), &expected));
        }
        shape[axis] += size;
    }
    let mut y = run.pool.tensor(dtype, &shape);
    let out = byte_levels_mut(&mut y);
    let row_size: usize = shape[axis..].iter().product();
    let mut start = 0;
    for index in (2..run.inputs.len()).step_by(3) {
        let part = run.input(index)?;
        let levels = byte_levels(part, index)?;
        let affine = Affine::new(run, index + 1, index + 2)?;
        let table = table(affine, part.dtype(), y_affine, dtype, |_| {});
        let size: usize = part.shape()[axis..].iter().product();
        if size == 0 {
            continue;
        }
        for (row, levels) in out.chunks_exact_mut(row_size).zip(levels.chunks_exact(size)) {
            let target = row[start..start + size].iter_mut().zip(levels);
            target.for_each(|(out, &level)| *out = table[usize::from(level)]);
        }
        start += size;
    }
    Ok(vec![y])
}
