//! `QuantizedMatMul`, made by fusion: y = activation((q − zero)·b · scales + bias).
//!
//! Inputs: q (u8), its scale and zero point (scalars), b (i8, symmetric), scales of b (one, or one
//! per column), and perhaps a bias; all but q constant. The sums are exact 32-bit integers; one
//! pass over a block of rows, while it is in the cache, turns them into f32.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::fused_matmul::{Activation, activation, for_row_blocks};
use crate::kernels::gemm::{self, PackedB8, Strided};
use crate::kernels::quantize;
use crate::matmul::{Sizes, infer_product, product_macs};
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run};

pub(crate) struct QuantizedMatMul;

impl Operator for QuantizedMatMul {
    fn op_type(&self) -> &'static str {
        "QuantizedMatMul"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        5..=6
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let operands = [inputs[0], inputs[3]];
        infer_product(&operands, DType::F32)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(QuantizedKernel::new(node, constants)?))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        product_macs(inputs, outputs)
    }

    fn keeps_constant(&self, _: usize) -> bool {
        true
    }
}

struct QuantizedKernel {
    packed: PackedB8,
    shape: [usize; 2],
    /// Scale of the sums of each column: that of q times that of b.
    scales: Vec<f32>,
    /// What q's zero point adds to the sums of each column.
    offsets: Vec<i32>,
    bias: Vec<f32>,
    activation: Option<Activation>,
}

impl QuantizedKernel {
    fn new(node: &Node, constants: &[Option<&Tensor>]) -> Result<Self, OpError> {
        let constant = |index: usize| {
            constants.get(index).copied().flatten().ok_or(OpError::MissingInput { index })
        };
        let (scale, zero, b, b_scales) = (constant(1)?, constant(2)?, constant(3)?, constant(4)?);
        if b.dtype() != DType::I8 || b.rank() != 2 || zero.dtype() != DType::U8 {
            return Err(OpError::DType { index: 3, found: b.dtype() });
        }
        let shape = [b.shape()[0], b.shape()[1]];
        let n = shape[1];
        let (scale, zero) = (scale.values::<f32>()[0], i32::from(zero.values::<u8>()[0]));
        let b_scales = b_scales.values::<f32>();
        if b_scales.len() != n && b_scales.len() != 1 {
            return Err(OpError::shapes(&shape, &[b_scales.len()]));
        }
        let scales: Vec<f32> = (0..n).map(|i| scale * b_scales[i % b_scales.len()]).collect();
        let bias = match constants.get(5).copied().flatten() {
            Some(bias) => bias.values::<f32>().into_owned(),
            None => vec![0.0; n],
        };
        let values = b.values::<i8>();
        let mut offsets = vec![0_i32; n];
        for row in values.chunks_exact(n.max(1)) {
            offsets.iter_mut().zip(row).for_each(|(sum, &b)| *sum += zero * i32::from(b));
        }
        let packed = PackedB8::new(Strided::rows(&values, shape[0], n));
        Ok(Self { packed, shape, scales, offsets, bias, activation: activation(node)? })
    }
}

impl Kernel for QuantizedKernel {
    fn run(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
        let q = run.typed::<u8>(0)?;
        let sizes = Sizes::new(q.shape(), &self.shape)?;
        let mut y = run.pool.tensor(DType::F32, &sizes.output);
        let (q, k, n) = (q.slice::<u8>(), sizes.k, sizes.n);
        let rows = sizes.batch.iter().product::<usize>() * sizes.m;
        for_row_blocks(y.slice_mut::<f32>(), rows, n, true, |first, block| {
            let count = block.len() / n;
            let mut scratch = run.pool.buffer(block.len() * 4);
            let sums: &mut [i32] = bytemuck::cast_slice_mut(scratch.as_bytes_mut());
            let a = Strided::rows(&q[first * k..(first + count) * k], count, k);
            gemm::matmul_u8_i8(sums, a, &[], &self.packed);
            for (row, sums) in block.chunks_exact_mut(n).zip(sums.chunks_exact(n)) {
                quantize::rescale_row(row, sums, &self.offsets, &self.scales, &self.bias);
            }
            if let Some(activation) = self.activation {
                activation(block);
            }
            run.pool.recycle_buffer(scratch);
        });
        Ok(vec![y])
    }
}
