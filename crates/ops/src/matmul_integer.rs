//! `MatMulInteger` (opset 10): (a − `a_zero)·(b` − `b_zero`) in 32-bit integers, 8-bit operands.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::kernels::gemm::{self, PackedB8, Right8, Strided};
use crate::matmul::{Sizes, batches, infer_product, product_macs};
use crate::{Fact, Kernel, OpError, Operator, Run};

pub(crate) struct MatMulInteger;

impl Operator for MatMulInteger {
    fn op_type(&self) -> &'static str {
        "MatMulInteger"
    }

    fn since_opset(&self) -> i64 {
        10
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=4
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer_product(inputs, DType::I32)
    }

    fn kernel(&self, _: &Node, constants: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let constant = constants.get(1).copied().flatten();
        let is_symmetric = |b: &&Tensor| match constants.get(3) {
            Some(Some(zero)) => {
                let centre = if b.dtype() == DType::U8 { 128 } else { 0 };
                zero.bytes().iter().all(|&byte| byte == centre)
            }
            // No zero point is 0, the centre of i8; one that is computed is not known yet.
            Some(None) | None => constants.len() <= 3 && b.dtype() == DType::I8,
        };
        let is_packable = |b: &&Tensor| b.rank() == 2 && is_8_bit(b.dtype()) && is_symmetric(b);
        let packed = constant.filter(is_packable).map(|b| {
            let view = signed(b);
            let [k, n] = [b.shape()[0], b.shape()[1]];
            (PackedB8::new(Strided::rows(&view, k, n)), [k, n], b.dtype())
        });
        Ok(Box::new(move |run: &mut Run| {
            let a = run.input(0)?;
            if !is_8_bit(a.dtype()) {
                return Err(OpError::DType { index: 0, found: a.dtype() });
            }
            let left = unsigned(a);
            if let Some((packed, shape, b_dtype)) = &packed {
                let sizes = Sizes::new(a.shape(), shape)?;
                let mut y = run.pool.tensor(DType::I32, &sizes.output);
                let rows = sizes.batch.iter().product::<usize>() * sizes.m;
                let zeros = ZeroPoints::new(run, a.dtype(), *b_dtype, sizes.m, sizes.n)?;
                let a_zero = zeros.left_for(rows);
                let a = Strided::rows(&left, rows, sizes.k);
                let y_data = y.slice_mut::<i32>();
                gemm::matmul_u8_i8(y_data, a, &a_zero, &Right8::Packed(packed), &[]);
                return Ok(vec![y]);
            }
            let b = run.input(1)?;
            if !is_8_bit(b.dtype()) {
                return Err(OpError::DType { index: 1, found: b.dtype() });
            }
            let right = signed(b);
            let sizes = Sizes::new(a.shape(), b.shape())?;
            let (m, k, n) = (sizes.m, sizes.k, sizes.n);
            let zeros = ZeroPoints::new(run, a.dtype(), b.dtype(), m, n)?;
            let mut y = run.pool.tensor(DType::I32, &sizes.output);
            let results = y.slice_mut::<i32>().chunks_exact_mut((m * n).max(1));
            for ([at_a, at_b], y) in batches(&sizes).into_iter().zip(results) {
                let a = Strided::rows(&left[at_a * m * k..][..m * k], m, k);
                let b = Right8::Strided(Strided::rows(&right[at_b * k * n..][..k * n], k, n));
                gemm::matmul_u8_i8(y, a, &zeros.left_for(m), &b, &zeros.right);
            }
            Ok(vec![y])
        }))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        product_macs(inputs, outputs)
    }

    fn keeps_constant(&self, input: usize) -> bool {
        input == 1
    }
}

fn is_8_bit(dtype: DType) -> bool {
    matches!(dtype, DType::U8 | DType::I8)
}

/// The left operand as u8: i8 moves up by 128, and its zero point with it.
fn unsigned(x: &Tensor) -> std::borrow::Cow<'_, [u8]> {
    match x.dtype() {
        DType::I8 => x.values::<i8>().iter().map(|&x| (x as u8) ^ 0x80).collect(),
        _ => x.values::<u8>(),
    }
}

/// The right operand as i8: u8 moves down by 128, and its zero point with it.
fn signed(x: &Tensor) -> std::borrow::Cow<'_, [i8]> {
    match x.dtype() {
        DType::U8 => x.values::<u8>().iter().map(|&x| (x ^ 0x80) as i8).collect(),
        _ => x.values::<i8>(),
    }
}

/// Zero points in the types of the kernel: of the rows of one left matrix, of the columns.
struct ZeroPoints {
    left: Vec<u8>,
    right: Vec<i8>,
}

impl ZeroPoints {
    fn new(run: &Run, a: DType, b: DType, m: usize, n: usize) -> Result<Self, OpError> {
        let list = |index: usize, count: usize| -> Result<Vec<i64>, OpError> {
            let Some(zero) = run.optional(index) else { return Ok(vec![0; count]) };
            let values = zero.to_i64().ok_or(OpError::DType { index, found: zero.dtype() })?;
            match values.len() {
                1 => Ok(vec![values[0]; count]),
                length if length == count => Ok(values),
                _ => Err(OpError::shapes(&[count], zero.shape())),
            }
        };
        let up = if a == DType::I8 { 128 } else { 0 };
        let down = if b == DType::U8 { 128 } else { 0 };
        Ok(Self {
            left: list(2, m)?.into_iter().map(|zero| (zero + up) as u8).collect(),
            right: list(3, n)?.into_iter().map(|zero| (zero - down) as i8).collect(),
        })
    }

    /// Zero points for `rows` rows, those of one matrix repeated.
    fn left_for(&self, rows: usize) -> Vec<u8> {
        self.left.iter().copied().cycle().take(rows).collect()
    }
}
