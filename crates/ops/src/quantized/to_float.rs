//! `MatMulIntegerToFloat` and `DynamicQuantizeMatMul` of ONNX Runtime: an integer product scaled
//! to f32, y = (a − zero)·(b − zero) · `a_scale`·`b_scale` + bias, where the second quantizes a
//! itself, by the range of the whole tensor (so that a row depends on the others).

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::{Integers, column_scales, left_zeros, product_rows, unsigned};
use crate::dynamic_quantize_linear::quantized_by_range;
use crate::kernels::quantize;
use crate::matmul::{Sizes, batches, infer_product, product_macs};
use crate::microsoft::vector;
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Run};

pub(crate) struct MatMulIntegerToFloat;

pub(crate) struct DynamicQuantizeMatMul;

/// Where b, its scale, its zero point and the bias stand.
#[derive(Clone, Copy)]
struct Places {
    scale: usize,
    zero_point: usize,
    bias: usize,
}

const STATIC: Places = Places { scale: 3, zero_point: 5, bias: 6 };
const DYNAMIC: Places = Places { scale: 2, zero_point: 3, bias: 4 };

/// A constant right side of two axes, packed, once its zero points are known too.
fn packed(
    constants: &[Option<&Tensor>],
    node: &Node,
    places: Places,
) -> Result<Option<Integers>, OpError> {
    let constant = |index: usize| constants.get(index).copied().flatten();
    let zero_point = constant(places.zero_point);
    let is_computed = node.input(places.zero_point).is_some() && zero_point.is_none();
    match constant(1) {
        Some(b) if b.rank() == 2 && !is_computed => {
            Integers::from_tensor(b, 1, false, zero_point).map(Some)
        }
        _ => Ok(None),
    }
}

impl Operator for MatMulIntegerToFloat {
    fn op_type(&self) -> &'static str {
        "MatMulIntegerToFloat"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        4..=7
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer_product(inputs, DType::F32)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let packed = packed(constants, node, STATIC)?;
        Ok(Box::new(move |run: &mut Run| {
            let a = run.input(0)?;
            let left = unsigned(a, 0)?;
            let scales = run.typed::<f32>(2)?.values::<f32>();
            let sizes = Sizes::new(a.shape(), run.input(1)?.shape())?;
            let rows = sizes.batch.iter().product::<usize>() * sizes.m;
            let zeros = left_zeros(run.optional(4), 4, a.dtype(), sizes.m, rows)?;
            multiply(run, &left, &zeros, &scales, packed.as_ref(), STATIC)
        }))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        product_macs(inputs, outputs)
    }
}

impl Operator for DynamicQuantizeMatMul {
    fn op_type(&self) -> &'static str {
        "DynamicQuantizeMatMul"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=5
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer_product(inputs, DType::F32)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let packed = packed(constants, node, DYNAMIC)?;
        Ok(Box::new(move |run: &mut Run| {
            let a = run.typed::<f32>(0)?;
            let sizes = Sizes::new(a.shape(), run.input(1)?.shape())?;
            let rows = sizes.batch.iter().product::<usize>() * sizes.m;
            let (q, scale, zero) = quantized_by_range(a, run.pool);
            let left = q.slice::<u8>();
            let result = multiply(run, left, &vec![zero; rows], &[scale], packed.as_ref(), DYNAMIC);
            run.pool.recycle(q);
            result
        }))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        product_macs(inputs, outputs)
    }
}

/// The product of u8 rows with input 1, as f32. `a_scales`: one, or one per row.
fn multiply(
    run: &Run,
    left: &[u8],
    zeros: &[u8],
    a_scales: &[f32],
    packed: Option<&Integers>,
    places: Places,
) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (run.input(0)?, run.input(1)?);
    let sizes = Sizes::new(a.shape(), b.shape())?;
    let (m, k, n) = (sizes.m, sizes.k, sizes.n);
    if a_scales.is_empty() || (a_scales.len() != 1 && !zeros.len().is_multiple_of(a_scales.len())) {
        return Err(OpError::shapes(&[zeros.len()], &[a_scales.len()]));
    }
    let b_scales = column_scales(run.input(places.scale)?, places.scale, n, 1.0)?;
    let none = vec![0.0; n];
    let bias = vector(run, places.bias, n)?.unwrap_or(&none);
    let offsets = vec![0; n];
    let finish = |first: usize, out: &mut [f32], sums: &mut [i32]| {
        let scales_at = |row: usize| -> Vec<f32> {
            let a_scale = a_scales[row % a_scales.len()];
            b_scales.iter().map(|&b| a_scale * b).collect()
        };
        let mut scales = scales_at(first);
        for (i, (out, sums)) in out.chunks_exact_mut(n).zip(sums.chunks_exact(n)).enumerate() {
            if i > 0 && a_scales.len() > 1 {
                scales = scales_at(first + i);
            }
            quantize::rescale_row(out, sums, &offsets, &scales, bias);
        }
    };
    let mut y = run.pool.tensor(DType::F32, &sizes.output);
    let out = y.slice_mut::<f32>();
    if let Some(packed) = packed {
        product_rows(out, left, zeros, packed, run.pool, finish);
        return Ok(vec![y]);
    }
    super::check_8_bit(b.dtype(), 1)?;
    let b_zeros = match run.optional(places.zero_point) {
        Some(zeros) => zeros.to_i64().unwrap_or_default(),
        None => Vec::new(),
    };
    let results = out.chunks_exact_mut((m * n).max(1)).enumerate();
    for ([at_a, at_b], (index, out)) in batches(&sizes).into_iter().zip(results) {
        let bytes = &b.bytes()[at_b * k * n..][..k * n];
        let right = Integers::new(bytes, b.dtype(), [k, n], false, &b_zeros)?;
        let (rows, first) = (&left[at_a * m * k..][..m * k], index * m);
        let zeros = &zeros[first..first + m];
        product_rows(out, rows, zeros, &right, run.pool, |at, out: &mut [f32], sums| {
            finish(first + at, out, sums);
        });
    }
    Ok(vec![y])
}
