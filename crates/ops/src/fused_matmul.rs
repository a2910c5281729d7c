//! `FusedMatMul`, made by fusion: y = activation(a·b + bias), `b` and `bias` constant.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::kernels::elementwise;
use crate::kernels::gemm::{self, Right, Strided};
use crate::matmul::{Sizes, infer_product, pack_right, product_macs};
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run};

pub(crate) struct FusedMatMul;

/// An element-wise function applied to a result while it is still in the cache.
pub(crate) type Activation = fn(&mut [f32]);

/// The function that an `activation` attribute names.
pub(crate) fn activation(node: &Node) -> Result<Option<Activation>, OpError> {
    Ok(match node.text("activation")?.unwrap_or("") {
        "" => None,
        "Gelu" => Some(elementwise::gelu),
        "Tanh" => Some(elementwise::tanh),
        "Sigmoid" => Some(elementwise::sigmoid),
        "Relu" => Some(|data| elementwise::clamp(data, 0.0, f32::INFINITY)),
        other => return Err(OpError::value("activation", other, "one that is fused")),
    })
}

/// Rows computed before the activation runs over them: few enough to stay in the L2 cache.
pub(crate) fn rows_per_block(n: usize) -> usize {
    ((1 << 17) / n.max(1)).clamp(24, 256)
}

impl Operator for FusedMatMul {
    fn op_type(&self) -> &'static str {
        "FusedMatMul"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer_product(inputs, DType::F32)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let constant = |i: usize| constants.get(i).copied().flatten();
        let activation = activation(node)?;
        let (b, bias) = (constant(1), constant(2));
        let (Some((packed, shape)), Some(bias)) = (b.and_then(pack_right), bias) else {
            return Err(OpError::value("the right side", "computed", "a constant f32 matrix"));
        };
        let bias = bias.values::<f32>().into_owned();
        if bias.len() != shape[1] {
            return Err(OpError::shapes(&shape, &[bias.len()]));
        }
        Ok(Box::new(move |run: &mut Run| {
            let a = run.typed::<f32>(0)?;
            let sizes = Sizes::new(a.shape(), &shape)?;
            let mut y = run.pool.tensor(DType::F32, &sizes.output);
            let (a, k, n) = (a.slice::<f32>(), sizes.k, sizes.n);
            let rows = sizes.batch.iter().product::<usize>() * sizes.m;
            let work = |first: usize, block: &mut [f32]| {
                let count = block.len() / n;
                let a = Strided::rows(&a[first * k..(first + count) * k], count, k);
                gemm::matmul(block, a, Right::Packed(&packed), Some(&bias));
                if let Some(activation) = activation {
                    activation(block);
                }
            };
            let y_data = y.slice_mut::<f32>();
            for_row_blocks(y_data, rows, n, activation.is_some(), work);
            Ok(vec![y])
        }))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        product_macs(inputs, outputs)
    }

    fn keeps_constant(&self, input: usize) -> bool {
        matches!(input, 1 | 2)
    }
}

/// Calls `work(first_row, rows)` over blocks of rows: all at once where nothing follows the
/// product, in blocks that stay in the cache where something does, on all threads.
pub(crate) fn for_row_blocks<T: Send>(
    y: &mut [T],
    rows: usize,
    n: usize,
    in_blocks: bool,
    work: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    use rayon::prelude::*;
    if rows == 0 || n == 0 {
        return;
    }
    let threads = rayon::current_num_threads();
    let block = rows_per_block(n);
    if threads > 1 && rows >= 2 * threads * 8 {
        // Every thread takes whole blocks of rows, and the product inside runs on one thread.
        let block = block.min(rows.div_ceil(threads)).next_multiple_of(8);
        y.par_chunks_mut(block * n).enumerate().for_each(|(i, rows)| work(i * block, rows));
    } else if in_blocks {
        y.chunks_mut(block * n).enumerate().for_each(|(i, rows)| work(i * block, rows));
    } else {
        work(0, y);
    }
}
