//! `FusedMatMul`, made by fusion: y = activation(a·b + bias). `b` and `bias` are constant when a model
//! is run, and change from step to step when it is trained.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::kernels::gemm::{self, Right, Strided};
use crate::kernels::{elementwise, for_rows, gradient as kernels, normalize};
use crate::matmul::{Sizes, infer_product, pack_right, product_macs};
use crate::normalization_gradient::place;
use crate::row_sums::{change_rows, sum_rows};
use crate::{
    ATTAR_DOMAIN, Backward, Fact, Flow, Forward, Gradient, Kernel, OpError, Operator, Reads, Run,
    Training,
};

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
            let held = [b, bias].map(|constant| constant.map(Tensor::aligned));
            return Ok(Box::new(move |run: &mut Run| {
                let mut y = biased_product(run, &held)?;
                if let Some(activation) = activation {
                    for_rows(y.slice_mut::<f32>(), 1, |_, values| activation(values));
                }
                Ok(vec![y])
            }));
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

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let activation = match node.text("activation")?.unwrap_or("") {
            "" => None,
            "Gelu" => Some(Slope { change: kernels::gelu, reads_result: false }),
            "Tanh" => Some(Slope { change: kernels::tanh, reads_result: true }),
            "Sigmoid" => Some(Slope { change: kernels::sigmoid, reads_result: true }),
            "Relu" => {
                let change = |dy: &mut [f32], y: &[f32]| kernels::relu(dy, y, 0.0);
                Some(Slope { change, reads_result: true })
            }
            other => return Err(OpError::value("activation", other, "one that is fused")),
        };
        let reads_result = activation.is_some_and(|slope| slope.reads_result);
        let reads = Reads::NOTHING.input_if(1, training.wants(0)).input_if(0, training.wants(1));
        let reads = if reads_result { reads.output(0) } else { reads };
        let held = [1, 2].map(|index| training.constant(index).map(Tensor::aligned));
        Ok(Box::new(ProductGradient { activation, reads, held }))
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
    let threads = crate::threads::count();
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

/// a·b + bias; b and bias are those held, or else the run's.
fn biased_product(run: &Run, held: &[Option<Tensor>; 2]) -> Result<Tensor, OpError> {
    let given = |index: usize| match &held[index - 1] {
        Some(tensor) if tensor.dtype() == DType::F32 => Ok(tensor),
        Some(tensor) => Err(OpError::DType { index, found: tensor.dtype() }),
        None => run.typed::<f32>(index),
    };
    let (a, b, bias) = (run.typed::<f32>(0)?, given(1)?, given(2)?);
    let sizes = Sizes::new(a.shape(), b.shape())?;
    let (k, n) = (sizes.k, sizes.n);
    let rows = sizes.single_right().filter(|_| bias.element_count() == n);
    let rows = rows.ok_or_else(|| OpError::shapes(b.shape(), bias.shape()))?;
    let mut y = run.pool.tensor(DType::F32, &sizes.output);
    let b = Right::Strided(Strided::rows(b.slice::<f32>(), k, n));
    let a = Strided::rows(a.slice::<f32>(), rows, k);
    gemm::matmul(y.slice_mut::<f32>(), a, b, Some(bias.slice::<f32>()));
    Ok(y)
}

/// How dY becomes the gradient of what the activation was given: by its result, or by that itself.
#[derive(Clone, Copy)]
struct Slope {
    change: fn(&mut [f32], &[f32]),
    reads_result: bool,
}

/// With U = A·B + bias and Y = f(U): dU = dY·f′(U), dA = dU·Bᵀ, dB = Aᵀ·dU, dbias = Σ dU over rows.
struct ProductGradient {
    activation: Option<Slope>,
    reads: Reads,
    /// b and bias, where they are constant.
    held: [Option<Tensor>; 2],
}

impl ProductGradient {
    fn saves_product(&self) -> bool {
        self.activation.is_some_and(|slope| !slope.reads_result)
    }

    /// dU in place of dY, and the sum of its rows.
    fn flow_through(&self, du: &mut Tensor, run: &mut Backward, n: usize) -> Tensor {
        let mut dbias = run.tensor(&[n]);
        let sums = dbias.slice_mut::<f32>();
        match self.activation {
            None => sum_rows(du.slice::<f32>(), sums, run.pool),
            Some(slope) => {
                let saved = run.saved.pop();
                let beside = saved.as_ref().unwrap_or_else(|| run.output(0)).slice::<f32>();
                change_rows(du.slice_mut::<f32>(), n, sums, run.pool, |first, rows, sums| {
                    (slope.change)(rows, &beside[first * n..][..rows.len()]);
                    normalize::add_rows(sums, rows);
                });
                saved.into_iter().for_each(|saved| run.pool.recycle(saved));
            }
        }
        dbias
    }
}

impl Gradient for ProductGradient {
    fn reads(&self) -> Reads {
        self.reads
    }

    fn forward(&self, forward: &mut Forward, kernel: &dyn Kernel) -> Result<Vec<Tensor>, OpError> {
        if !self.saves_product() {
            return kernel.run(&mut forward.run);
        }
        let run = &forward.run;
        let product = biased_product(run, &self.held)?;
        let mut y = run.pool.tensor(DType::F32, product.shape());
        let values = product.slice::<f32>();
        for_rows(y.slice_mut::<f32>(), 1, |first, y| {
            kernels::gelu_into(y, &values[first..][..y.len()]);
        });
        forward.saved.push(product);
        Ok(vec![y])
    }

    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let (a_shape, b_shape) = (run.shape(0).to_vec(), run.shape(1).to_vec());
        let sizes = Sizes::new(&a_shape, &b_shape)?;
        let (rows, k, n) = (sizes.batch.iter().product::<usize>() * sizes.m, sizes.k, sizes.n);
        let mut du = run.take_gradient();
        let dbias = self.flow_through(&mut du, run, n);
        let mut flows = vec![None; 3];
        let values = Strided::rows(du.slice::<f32>(), rows, n);
        if run.wants(0) {
            let b = Strided::rows(run.input(1)?.slice::<f32>(), k, n).transposed();
            let mut da = run.tensor(&a_shape);
            gemm::matmul(da.slice_mut::<f32>(), values, Right::Strided(b), None);
            flows[0] = Some(da.into());
        }
        if run.wants(1) {
            let a = Strided::rows(run.input(0)?.slice::<f32>(), rows, k).transposed();
            let mut db = run.tensor(&b_shape);
            gemm::matmul(db.slice_mut::<f32>(), a, Right::Strided(values), None);
            flows[1] = Some(db.into());
        }
        place(&mut flows, Some(2), dbias, run);
        run.pool.recycle(du);
        Ok(flows)
    }
}
