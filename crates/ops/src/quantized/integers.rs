//! Products of 8-bit matrices: exact 32-bit sums of (a − `a_zero`)·(b − `b_zero`).

use std::borrow::Cow;

use attar_tensor::{DType, Tensor};

use super::check_8_bit;
use crate::fused_matmul::for_row_blocks;
use crate::kernels::gemm::Strided;
use crate::kernels::int8::{Product, Rows, Target, Values, Weights, run_all};
use crate::{OpError, Pool};

/// A right side, laid out for the kernel, with its zero points.
pub(crate) struct Integers {
    /// `None` when the matrix has no elements.
    packed: Option<Product>,
    pub(crate) size: [usize; 2],
    /// Of each column, as i8 counts; empty where all are 0.
    zero_points: Vec<i32>,
}

impl Integers {
    /// From rows of `b` with [depth, columns], or the transposed of it. Zero points: none, one, or
    /// one per column.
    pub(crate) fn new(
        b: &[u8],
        dtype: DType,
        size: [usize; 2],
        is_transposed: bool,
        zero_points: &[i64],
    ) -> Result<Self, OpError> {
        let [depth, columns] = size;
        let shift = if dtype == DType::U8 { 128 } else { 0 };
        let zero_points: Vec<i32> = match zero_points {
            [] => vec![-shift; columns],
            &[zero] => vec![zero as i32 - shift; columns],
            all if all.len() == columns => all.iter().map(|&zero| zero as i32 - shift).collect(),
            all => return Err(OpError::shapes(&[columns], &[all.len()])),
        };
        let flip = if dtype == DType::U8 { 0x80 } else { 0 };
        let signed: Vec<i8> = b.iter().map(|&byte| (byte ^ flip) as i8).collect();
        let rows = if is_transposed { [columns, depth] } else { size };
        let view = Strided::rows(&signed, rows[0], rows[1]);
        let view = if is_transposed { view.transposed() } else { view };
        let packed = (!signed.is_empty()).then(|| Product::sums(Weights::new(view)));
        let is_symmetric = zero_points.iter().all(|&zero| zero == 0);
        let zero_points = if is_symmetric { Vec::new() } else { zero_points };
        Ok(Self { packed, size, zero_points })
    }

    /// From a tensor of two axes and the tensor of its zero points.
    pub(crate) fn from_tensor(
        b: &Tensor,
        index: usize,
        is_transposed: bool,
        zero_point: Option<&Tensor>,
    ) -> Result<Self, OpError> {
        check_8_bit(b.dtype(), index)?;
        let &[rows, columns] = b.shape() else {
            return Err(OpError::value(&format!("input {index}"), b.shape(), "a matrix"));
        };
        let size = if is_transposed { [columns, rows] } else { [rows, columns] };
        let zero_points = match zero_point {
            Some(tensor) => tensor.to_i64().unwrap_or_default(),
            None => Vec::new(),
        };
        Self::new(b.bytes(), b.dtype(), size, is_transposed, &zero_points)
    }

    /// out = (a − `a_zero`)·(b − `b_zero`), one zero point per row of `a`, [rows, depth].
    pub(crate) fn product(&self, out: &mut [i32], a: &[u8], a_zeros: &[u8]) {
        let [depth, columns] = self.size;
        let Some(packed) = &self.packed else {
            out.fill(0);
            return;
        };
        if out.is_empty() {
            return;
        }
        let left = Rows { data: a, count: a_zeros.len(), stride: depth };
        let target = Target { values: Values::I32(out), stride: columns };
        run_all(left, std::iter::once((packed, target)));
        let rows = out.chunks_exact_mut(columns).zip(a.chunks_exact(depth)).zip(a_zeros);
        for ((out, a), &a_zero) in rows {
            let a_zero = i32::from(a_zero);
            if a_zero != 0 {
                let sums = out.iter_mut().zip(packed.column_sums());
                sums.for_each(|(out, sum)| *out = out.wrapping_sub(a_zero.wrapping_mul(*sum)));
            }
            if !self.zero_points.is_empty() {
                let sum: i32 = a.iter().map(|&a| i32::from(a)).sum();
                let centred = sum.wrapping_sub((depth as i32).wrapping_mul(a_zero));
                let zeros = out.iter_mut().zip(&self.zero_points);
                zeros.for_each(|(out, zero)| *out = out.wrapping_sub(centred.wrapping_mul(*zero)));
            }
        }
    }
}

/// The left operand as u8: i8 moves up by 128, and its zero points with it.
pub(crate) fn unsigned(x: &Tensor, index: usize) -> Result<Cow<'_, [u8]>, OpError> {
    check_8_bit(x.dtype(), index)?;
    Ok(match x.dtype() {
        DType::I8 => x.bytes().iter().map(|&byte| byte ^ 0x80).collect(),
        _ => Cow::Borrowed(x.bytes()),
    })
}

/// Zero points of `rows` left rows as u8, from none, one, those of the `m` rows of one matrix, or
/// all.
pub(crate) fn left_zeros(
    zero_point: Option<&Tensor>,
    index: usize,
    dtype: DType,
    m: usize,
    rows: usize,
) -> Result<Vec<u8>, OpError> {
    let shift = if dtype == DType::I8 { 128 } else { 0 };
    let Some(tensor) = zero_point else { return Ok(vec![shift as u8; rows]) };
    let error = OpError::DType { index, found: tensor.dtype() };
    let values = tensor.to_i64().ok_or(error)?;
    if values.is_empty() || (values.len() != 1 && values.len() != m && values.len() != rows) {
        return Err(OpError::shapes(&[rows], tensor.shape()));
    }
    Ok(values.iter().cycle().take(rows).map(|&zero| (zero + shift) as u8).collect())
}

/// One scale per column, each times `factor`, from one or from as many.
pub(crate) fn column_scales(
    scales: &Tensor,
    index: usize,
    columns: usize,
    factor: f32,
) -> Result<Vec<f32>, OpError> {
    if scales.dtype() != DType::F32 {
        return Err(OpError::DType { index, found: scales.dtype() });
    }
    let values = scales.values::<f32>();
    match values.len() {
        1 => Ok(vec![factor * values[0]; columns]),
        count if count == columns => Ok(values.iter().map(|&scale| factor * scale).collect()),
        _ => Err(OpError::shapes(&[columns], scales.shape())),
    }
}

/// Products of rows (u8, `depth` each) in blocks that stay in the cache, each handed to
/// `finish(first row, block of y, sums)`.
pub(crate) fn product_rows<T: Send>(
    y: &mut [T],
    left: &[u8],
    left_zeros: &[u8],
    right: &Integers,
    pool: &Pool,
    finish: impl Fn(usize, &mut [T], &mut [i32]) + Send + Sync,
) {
    let [depth, columns] = right.size;
    let rows = left_zeros.len();
    for_row_blocks(y, rows, columns, true, |first, block| {
        let count = block.len() / columns;
        let mut scratch = pool.buffer(block.len() * 4);
        let sums: &mut [i32] = bytemuck::cast_slice_mut(scratch.as_bytes_mut());
        let a = &left[first * depth..(first + count) * depth];
        right.product(sums, a, &left_zeros[first..first + count]);
        finish(first, block, sums);
        pool.recycle_buffer(scratch);
    });
}
