//! `QGemm` of ONNX Runtime: α·`a_scale`·`b_scale`·(A′·B′ + C), off zero points, C in 32-bit
//! integers; as f32, or quantized where `y_scale` is given.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::{
    Affine, Integers, byte_levels_mut, check_8_bit, column_scales, left_zeros, product_rows,
    requantize_bytes, unsigned,
};
use crate::broadcast::{broadcast_shapes, broadcast_strides};
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Run, required};

pub(crate) struct QGemm;

/// Indices of the inputs.
mod input {
    pub(super) const A: usize = 0;
    pub(super) const A_SCALE: usize = 1;
    pub(super) const A_ZERO: usize = 2;
    pub(super) const B: usize = 3;
    pub(super) const B_SCALE: usize = 4;
    pub(super) const B_ZERO: usize = 5;
    pub(super) const C: usize = 6;
    pub(super) const Y_SCALE: usize = 7;
    pub(super) const Y_ZERO: usize = 8;
}

struct Settings {
    alpha: f32,
    transpose_a: bool,
    transpose_b: bool,
}

impl Settings {
    fn new(node: &Node) -> Result<Self, OpError> {
        Ok(Self {
            alpha: node.float_or("alpha", 1.0)?,
            transpose_a: node.int_or("transA", 0)? != 0,
            transpose_b: node.int_or("transB", 0)? != 0,
        })
    }
}

impl Operator for QGemm {
    fn op_type(&self) -> &'static str {
        "QGemm"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        6..=9
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let settings = Settings::new(node)?;
        let dim = |index: usize, axis: usize| -> Result<Dim, OpError> {
            let shape = required(inputs, index)?.shape.as_ref();
            Ok(shape.and_then(|shape| shape.get(axis).cloned()).unwrap_or(Dim::Unknown))
        };
        let m = dim(input::A, usize::from(settings.transpose_a))?;
        let n = dim(input::B, usize::from(!settings.transpose_b))?;
        let zero = inputs.get(input::Y_ZERO).copied().flatten();
        let is_float = inputs.get(input::Y_SCALE).copied().flatten().is_none();
        let dtype = if is_float { DType::F32 } else { zero.map_or(DType::U8, |zero| zero.dtype) };
        Ok(vec![Fact::new(dtype, vec![m, n])])
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node)?;
        let constant = |index: usize| constants.get(index).copied().flatten();
        let packed = match (constant(input::B), constant(input::B_ZERO)) {
            (Some(b), Some(zero)) => {
                Some(Integers::from_tensor(b, input::B, settings.transpose_b, Some(zero))?)
            }
            _ => None,
        };
        Ok(Box::new(move |run: &mut Run| multiply(run, &settings, packed.as_ref())))
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        let k_axis = usize::from(!Settings::new(node).is_ok_and(|s| s.transpose_a));
        let depth = inputs[input::A].and_then(|a| a.shape.as_ref()?.get(k_axis).cloned());
        &outputs[0].element_count() * &depth.unwrap_or(Dim::Unknown)
    }
}

/// What is added to the sums: 32-bit integers with the strides by which they repeat.
struct Addend<'a> {
    values: &'a [i32],
    strides: [usize; 2],
}

impl<'a> Addend<'a> {
    fn new(run: &'a Run, size: [usize; 2]) -> Result<Option<Self>, OpError> {
        if run.optional(input::C).is_none() {
            return Ok(None);
        }
        let c = run.typed::<i32>(input::C)?;
        if broadcast_shapes(c.shape(), &size)? != size {
            return Err(OpError::shapes(c.shape(), &size));
        }
        let strides = broadcast_strides(c.shape(), &size);
        Ok(Some(Self { values: c.slice(), strides: [strides[0], strides[1]] }))
    }

    fn add(&self, row: usize, sums: &mut [i32]) {
        let at = row * self.strides[0];
        for (column, sum) in sums.iter_mut().enumerate() {
            *sum = sum.wrapping_add(self.values[at + column * self.strides[1]]);
        }
    }
}

fn multiply(
    run: &mut Run,
    settings: &Settings,
    packed: Option<&Integers>,
) -> Result<Vec<Tensor>, OpError> {
    let a = run.input(input::A)?;
    let &[rows_a, columns_a] = a.shape() else {
        return Err(OpError::value("input 0", a.shape(), "a matrix"));
    };
    let mut left = unsigned(a, input::A)?;
    let (m, k) = if settings.transpose_a { (columns_a, rows_a) } else { (rows_a, columns_a) };
    if settings.transpose_a {
        left = (0..m * k).map(|i| left[i % k * m + i / k]).collect();
    }
    let made;
    let right = if let Some(packed) = packed {
        packed
    } else {
        let zero = run.optional(input::B_ZERO);
        let b = run.input(input::B)?;
        made = Integers::from_tensor(b, input::B, settings.transpose_b, zero)?;
        &made
    };
    let [depth, n] = right.size;
    if depth != k {
        return Err(OpError::shapes(&[m, k], &right.size));
    }
    let a_scale = Affine::new(run, input::A_SCALE, input::A_ZERO)?.scale;
    let zeros = left_zeros(run.optional(input::A_ZERO), input::A_ZERO, a.dtype(), m, m)?;
    let b_scales = run.input(input::B_SCALE)?;
    let mut scales = column_scales(b_scales, input::B_SCALE, n, settings.alpha * a_scale)?;
    let addend = Addend::new(run, [m, n])?;
    let add = |row: usize, sums: &mut [i32]| {
        if let Some(addend) = &addend {
            addend.add(row, sums);
        }
    };
    if run.optional(input::Y_SCALE).is_none() {
        let mut y = run.pool.tensor(DType::F32, &[m, n]);
        product_rows(
            y.slice_mut(),
            &left,
            &zeros,
            right,
            run.pool,
            |first, out: &mut [f32], sums| {
                for (i, (out, sums)) in out.chunks_mut(n).zip(sums.chunks_mut(n)).enumerate() {
                    add(first + i, sums);
                    let terms = out.iter_mut().zip(&*sums).zip(&scales);
                    terms.for_each(|((y, &sum), &scale)| *y = sum as f32 * scale);
                }
            },
        );
        return Ok(vec![y]);
    }
    let y_affine = Affine::new(run, input::Y_SCALE, input::Y_ZERO)?;
    let dtype = run.optional(input::Y_ZERO).map_or(DType::U8, Tensor::dtype);
    check_8_bit(dtype, input::Y_ZERO)?;
    scales.iter_mut().for_each(|scale| *scale /= y_affine.scale);
    let mut y = run.pool.tensor(dtype, &[m, n]);
    let out = byte_levels_mut(&mut y);
    product_rows(out, &left, &zeros, right, run.pool, |first, out: &mut [u8], sums| {
        for (i, (out, sums)) in out.chunks_mut(n).zip(sums.chunks_mut(n)).enumerate() {
            add(first + i, sums);
            requantize_bytes(out, sums, &scales, y_affine.zero_point, dtype);
        }
    });
    Ok(vec![y])
}
