//! `MatMulInteger` (opset 10): `(a − a_zero)·(b − b_zero)` in 32-bit integers, 8-bit operands.
//! Zero points: one each, or one per row of a and per column of b.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::matmul::{Sizes, batches, infer_product, product_macs};
use crate::quantized::{Integers, check_8_bit, left_zeros, unsigned};
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

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let constant = |index: usize| constants.get(index).copied().flatten();
        // A zero point that is computed is not known yet.
        let is_computed = node.input(3).is_some() && constant(3).is_none();
        let packed = match constant(1) {
            Some(b) if b.rank() == 2 && !is_computed => {
                Some(Integers::from_tensor(b, 1, false, constant(3))?)
            }
            _ => None,
        };
        Ok(Box::new(move |run: &mut Run| multiply(run, packed.as_ref())))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        product_macs(inputs, outputs)
    }
}

fn multiply(run: &mut Run, packed: Option<&Integers>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (run.input(0)?, run.input(1)?);
    let left = unsigned(a, 0)?;
    check_8_bit(b.dtype(), 1)?;
    let sizes = Sizes::new(a.shape(), b.shape())?;
    let (m, k, n) = (sizes.m, sizes.k, sizes.n);
    let rows = sizes.batch.iter().product::<usize>() * m;
    let zeros = left_zeros(run.optional(2), 2, a.dtype(), m, rows)?;
    let mut y = run.pool.tensor(DType::I32, &sizes.output);
    let out = y.slice_mut::<i32>();
    if let Some(packed) = packed {
        packed.product(out, &left, &zeros);
        return Ok(vec![y]);
    }
    let b_zeros = match run.optional(3) {
        Some(zero) => zero.to_i64().ok_or(OpError::DType { index: 3, found: zero.dtype() })?,
        None => Vec::new(),
    };
    let b_count = b.element_count().checked_div(k * n).unwrap_or(1);
    let results = out.chunks_exact_mut((m * n).max(1)).enumerate();
    for ([at_a, at_b], (index, out)) in batches(&sizes).into_iter().zip(results) {
        let bytes = &b.bytes()[at_b * k * n..][..k * n];
        // Zero points of every matrix of b apart, where there are as many.
        let of_matrix = if b_zeros.len() > n && b_zeros.len() == b_count * n {
            &b_zeros[at_b * n..(at_b + 1) * n]
        } else {
            &b_zeros
        };
        let right = Integers::new(bytes, b.dtype(), [k, n], false, of_matrix)?;
        let a = &left[at_a * m * k..][..m * k];
        right.product(out, a, &zeros[index * m..(index + 1) * m]);
    }
    Ok(vec![y])
}
