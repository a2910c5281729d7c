//! `QLinearMatMul` (opset 10; f16 scales from 21): y = clamp(round((a − zero)·(b − zero) ·
//! `a_scale`·`b_scale`/`y_scale`) + zero). 8-bit integers; scales of a and y per tensor or row, of b
//! per tensor or column.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::{
    Integers, byte_levels_mut, check_8_bit, column_scales, left_zeros, product_rows,
    requantize_bytes, unsigned,
};
use crate::matmul::{Sizes, batches, infer_product, product_macs};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct QLinearMatMul;

impl Operator for QLinearMatMul {
    fn op_type(&self) -> &'static str {
        "QLinearMatMul"
    }

    fn since_opset(&self) -> i64 {
        10
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        8..=8
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer_product(&[inputs[0], inputs[3]], required(inputs, 7)?.dtype)
    }

    fn kernel(&self, _: &Node, constants: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let constant = |index: usize| constants.get(index).copied().flatten();
        let packed = match (constant(3), constant(5)) {
            (Some(b), Some(zero)) if b.rank() == 2 => {
                Some((Integers::from_tensor(b, 3, false, Some(zero))?, b.shape().to_vec()))
            }
            _ => None,
        };
        Ok(Box::new(move |run: &mut Run| multiply(run, packed.as_ref())))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        product_macs(inputs, outputs)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// How sums become levels of y.
struct Rescaling {
    /// Of rows: one, or one each for the rows of a matrix or of all.
    a_scales: Vec<f32>,
    y_scales: Vec<f32>,
    y_zeros: Vec<i32>,
    /// Of columns.
    b_scales: Vec<f32>,
}

impl Rescaling {
    fn new(run: &Run, m: usize, rows: usize, n: usize) -> Result<Self, OpError> {
        let check = |index: usize, count: usize| {
            if count == 1 || count == m || count == rows {
                return Ok(());
            }
            Err(OpError::shapes(&[rows], run.input(index)?.shape()))
        };
        let of_rows = |index: usize| -> Result<Vec<f32>, OpError> {
            let scales = run.typed::<f32>(index)?.values::<f32>().into_owned();
            check(index, scales.len())?;
            Ok(scales)
        };
        let y_zero = run.input(7)?;
        check_8_bit(y_zero.dtype(), 7)?;
        check(7, y_zero.element_count())?;
        let zeros = y_zero.to_i64().unwrap_or_default();
        Ok(Self {
            a_scales: of_rows(1)?,
            y_scales: of_rows(6)?,
            y_zeros: zeros.into_iter().map(|zero| zero as i32).collect(),
            b_scales: column_scales(run.input(4)?, 4, n, 1.0)?,
        })
    }

    fn is_uniform(&self) -> bool {
        self.a_scales.len() == 1 && self.y_scales.len() == 1
    }

    /// One scale per column, multiplied in the order of ONNX Runtime: (a · b) / y.
    fn scales(&self, row: usize) -> Vec<f32> {
        let a = self.a_scales[row % self.a_scales.len()];
        let y = self.y_scales[row % self.y_scales.len()];
        self.b_scales.iter().map(|&b| a * b / y).collect()
    }

    /// Rows of levels from rows of sums, the first of which is row `first`.
    fn finish(&self, first: usize, out: &mut [u8], sums: &[i32], dtype: DType) {
        let n = self.b_scales.len();
        let mut scales = self.scales(first);
        for (i, (out, sums)) in out.chunks_exact_mut(n).zip(sums.chunks_exact(n)).enumerate() {
            if i > 0 && !self.is_uniform() {
                scales = self.scales(first + i);
            }
            let zero = self.y_zeros[(first + i) % self.y_zeros.len()];
            requantize_bytes(out, sums, &scales, zero, dtype);
        }
    }
}

fn multiply(
    run: &mut Run,
    packed: Option<&(Integers, Vec<usize>)>,
) -> Result<Vec<Tensor>, OpError> {
    let a = run.input(0)?;
    let b_shape = match packed {
        Some((_, shape)) => shape.as_slice(),
        None => run.input(3)?.shape(),
    };
    let sizes = Sizes::new(a.shape(), b_shape)?;
    let (m, k, n) = (sizes.m, sizes.k, sizes.n);
    let left = unsigned(a, 0)?;
    let rows = sizes.batch.iter().product::<usize>() * m;
    let rescaling = Rescaling::new(run, m, rows, n)?;
    let zeros = left_zeros(run.optional(2), 2, a.dtype(), m, rows)?;
    let dtype = run.input(7)?.dtype();
    let mut y = run.pool.tensor(dtype, &sizes.output);
    let out = byte_levels_mut(&mut y);
    let finish = |first: usize, out: &mut [u8], sums: &mut [i32]| {
        rescaling.finish(first, out, sums, dtype);
    };
    if let Some((packed, _)) = packed {
        product_rows(out, &left, &zeros, packed, run.pool, finish);
        return Ok(vec![y]);
    }
    let b = run.input(3)?;
    check_8_bit(b.dtype(), 3)?;
    let b_zeros = match run.optional(5) {
        Some(zeros) => zeros.to_i64().unwrap_or_default(),
        None => Vec::new(),
    };
    let results = out.chunks_exact_mut((m * n).max(1)).enumerate();
    for ([at_a, at_b], (index, out)) in batches(&sizes).into_iter().zip(results) {
        let b = &b.bytes()[at_b * k * n..][..k * n];
        let right = Integers::new(b, run.input(3)?.dtype(), [k, n], false, &b_zeros)?;
        let first = index * m;
        let rows = &left[at_a * m * k..][..m * k];
        let zeros = &zeros[first..first + m];
        product_rows(out, rows, zeros, &right, run.pool, |at, out, sums| {
            finish(first + at, out, sums);
        });
    }
    Ok(vec![y])
}
