//! `QLinearAdd` and `QLinearMul` of ONNX Runtime: a + b or a · b of dequantized values, quantized
//! again; broadcasting.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use super::{Affine, byte_levels, byte_levels_mut};
use crate::broadcast::{Loops, broadcast_facts, broadcast_shapes};
use crate::kernels::quantize::{self, Levels};
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Run, required};

/// A loop over two rows of levels.
type RowLoop = fn(&mut [u8], Levels<'_>, Levels<'_>, i32, u8);

macro_rules! binary {
    ($($op:ident, $loop:expr, $scales:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn domain(&self) -> &'static str {
                MICROSOFT_DOMAIN
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                7..=8
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                let (a, b) = (required(inputs, 0)?, required(inputs, 3)?);
                Ok(vec![broadcast_facts(&[a, b], a.dtype)?])
            }

            fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
                Ok(Box::new(move |run: &mut Run| binary(run, $loop, $scales)))
            }
        }
    )*};
}

binary! {
    QLinearAdd, quantize::add_u8, |a, b, y| [a / y, b / y];
    QLinearMul, quantize::multiply_u8, |a, b, y| [a * b / y, 1.0];
}

/// `scales` gives what a and b are multiplied by, so that the result is in levels of y.
fn binary(
    run: &mut Run,
    row_loop: RowLoop,
    scales: fn(f32, f32, f32) -> [f32; 2],
) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (run.input(0)?, run.input(3)?);
    if a.dtype() != b.dtype() {
        return Err(OpError::DType { index: 3, found: b.dtype() });
    }
    let (a_levels, b_levels) = (byte_levels(a, 0)?, byte_levels(b, 3)?);
    let affine = [Affine::new(run, 1, 2)?, Affine::new(run, 4, 5)?, Affine::new(run, 6, 7)?];
    let (flip, up) = if a.dtype() == DType::I8 { (0x80, 128) } else { (0, 0) };
    let [a_scale, b_scale] = scales(affine[0].scale, affine[1].scale, affine[2].scale);
    let shape = broadcast_shapes(a.shape(), b.shape())?;
    let loops = Loops::new([a.shape(), b.shape()], &shape);
    let (size, [a_stride, b_stride]) = (loops.inner_size(), loops.inner_strides());
    let mut y = run.pool.tensor(a.dtype(), &shape);
    let mut rows = byte_levels_mut(&mut y).chunks_exact_mut(size.max(1));
    loops.for_each_row(|[at_a, at_b]| {
        let Some(row) = rows.next() else { return };
        let left = Levels {
            data: &a_levels[at_a..at_a + if a_stride == 0 { 1 } else { size }],
            is_scalar: a_stride == 0,
            scale: a_scale,
            zero_point: affine[0].zero_point + up,
        };
        let right = Levels {
            data: &b_levels[at_b..at_b + if b_stride == 0 { 1 } else { size }],
            is_scalar: b_stride == 0,
            scale: b_scale,
            zero_point: affine[1].zero_point + up,
        };
        row_loop(row, left, right, affine[2].zero_point + up, flip);
    });
    Ok(vec![y])
}
