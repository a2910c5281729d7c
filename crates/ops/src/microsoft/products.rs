//! `FusedMatMul` and `FusedGemm` of ONNX Runtime: y = α·A′·B′ with transposed sides (also across
//! batch axes), and activation(Gemm).

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::channels::{Channels, Port, Tensors};
use crate::gemm::Gemm;
use crate::gradient::{gradient, sum_to};
use crate::kernels::gemm::{self, PackedB, Right, Strided};
use crate::kernels::{elementwise, for_rows, gradient as kernels};
use crate::matmul::{Sizes, batches, product_channels, product_dims, product_macs};
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Pool, Reads, Run,
    Training, required,
};

/// `FusedMatMul` of ONNX Runtime, whose meaning is not that of attar's own.
pub(crate) struct MicrosoftFusedMatMul;

/// Which axes of a side change places: its last two, and before that its first with the others.
#[derive(Clone, Copy)]
struct Side {
    is_transposed: bool,
    is_batch_moved: bool,
}

impl Side {
    fn new(node: &Node, letter: char) -> Result<Self, OpError> {
        Ok(Self {
            is_transposed: node.int_or(&format!("trans{letter}"), 0)? != 0,
            is_batch_moved: node.int_or(&format!("transBatch{letter}"), 0)? != 0,
        })
    }

    /// The sizes of an operand as it is multiplied, with the strides given for those it has.
    fn seen<T: Clone>(self, sizes: &[T]) -> Vec<T> {
        let mut sizes = sizes.to_vec();
        let rank = sizes.len();
        if rank < 2 {
            return sizes;
        }
        if self.is_batch_moved {
            // [first, batch…, last] is [batch…, first, last].
            sizes[..rank - 1].rotate_left(1);
        }
        if self.is_transposed {
            sizes.swap(rank - 2, rank - 1);
        }
        sizes
    }
}

impl Side {
    /// A tensor in the order in which it was multiplied, put back in that of its own `shape`.
    fn unseen(self, tensor: &Tensor, shape: &[usize], pool: &Pool) -> Tensor {
        if shape.len() < 2 || !(self.is_transposed || self.is_batch_moved) {
            return tensor.reshaped(shape);
        }
        let (sizes, strides) = (self.seen(shape), self.seen(&strides_of(shape)));
        let mut out = pool.tensor(DType::F32, shape);
        let values = out.slice_mut::<f32>();
        for (index, &value) in tensor.slice::<f32>().iter().enumerate() {
            let (mut rest, mut at) = (index, 0);
            for (&size, &stride) in sizes.iter().zip(&strides).rev() {
                at += rest % size * stride;
                rest /= size;
            }
            values[at] = value;
        }
        out
    }
}

/// Row-major strides of a shape.
fn strides_of(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

impl Operator for MicrosoftFusedMatMul {
    fn op_type(&self) -> &'static str {
        "FusedMatMul"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        let (Some(a_shape), Some(b_shape)) = (&a.shape, &b.shape) else {
            return Ok(vec![Fact::unranked(a.dtype)]);
        };
        let (left, right) = (Side::new(node, 'A')?, Side::new(node, 'B')?);
        let dims = product_dims(&left.seen(a_shape), &right.seen(b_shape))?;
        Ok(vec![Fact::new(a.dtype, dims)])
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        let axes = |index: usize, letter: char| -> Option<Vec<usize>> {
            let rank = tensors.rank(Port::Input(index))?;
            Some(Side::new(node, letter).ok()?.seen(&(0..rank).collect::<Vec<_>>()))
        };
        product_channels(tensors, &[axes(0, 'A')?, axes(1, 'B')?])
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let sides = [Side::new(node, 'A')?, Side::new(node, 'B')?];
        let alpha = node.float_or("alpha", 1.0)?;
        let constant = constants.get(1).copied().flatten();
        let packed = constant.filter(|b| b.dtype() == DType::F32 && b.rank() == 2).map(|b| {
            let values = b.values::<f32>();
            let view = Strided::rows(&values, b.shape()[0], b.shape()[1]);
            let view = if sides[1].is_transposed { view.transposed() } else { view };
            (PackedB::new(view), view.size)
        });
        let packed = packed.filter(|(_, size)| !size.contains(&0));
        Ok(Box::new(move |run: &mut Run| multiply(run, sides, alpha, packed.as_ref())))
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let sides = [Side::new(node, 'A')?, Side::new(node, 'B')?];
        let alpha = node.float_or("alpha", 1.0)?;
        let reads = Reads::NOTHING.input_if(1, training.wants(0)).input_if(0, training.wants(1));
        gradient(reads, move |run: &mut Backward| flow_back(run, sides, alpha))
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        let Ok(left) = Side::new(node, 'A') else { return Dim::Unknown };
        let a = inputs[0].and_then(|a| a.shape.as_ref()).map(|shape| left.seen(shape));
        let a = a.map(|shape| Fact::new(DType::F32, shape));
        product_macs(&[a.as_ref()], outputs)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

fn multiply(
    run: &mut Run,
    [left, right]: [Side; 2],
    alpha: f32,
    packed: Option<&(PackedB, [usize; 2])>,
) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (run.typed::<f32>(0)?, run.typed::<f32>(1)?);
    let (a_shape, b_shape) = (left.seen(a.shape()), right.seen(b.shape()));
    let sizes = Sizes::new(&a_shape, &b_shape)?;
    let mut y = run.pool.tensor(DType::F32, &sizes.output);
    let (m, k, n) = (sizes.m, sizes.k, sizes.n);
    let is_plain = !left.is_transposed && !left.is_batch_moved;
    let out = y.slice_mut::<f32>();
    if let (Some((packed, _)), true) = (packed, is_plain) {
        let rows = sizes.batch.iter().product::<usize>() * m;
        gemm::matmul(out, Strided::rows(a.slice(), rows, k), Right::Packed(packed), None);
    } else {
        let (a_data, b_data) = (a.slice::<f32>(), b.slice::<f32>());
        let a_starts = Starts::new(a.shape(), left);
        let b_starts = Starts::new(b.shape(), right);
        let results = out.chunks_exact_mut((m * n).max(1));
        for ([at_a, at_b], y) in batches(&sizes).into_iter().zip(results) {
            let a = a_starts.matrix(a_data, at_a, [m, k]);
            let b = b_starts.matrix(b_data, at_b, [k, n]);
            gemm::matmul(y, a, Right::Strided(b), None);
        }
    }
    if alpha != 1.0 {
        for_rows(out, 1, |_, values| values.iter_mut().for_each(|value| *value *= alpha));
    }
    Ok(vec![y])
}

/// Y = α·A′·B′: dA′ = α·dY·B′ᵀ, dB′ = α·A′ᵀ·dY, summed over the batch axes that were broadcast, and
/// put back in the order of A and B.
fn flow_back(
    run: &mut Backward,
    [left, right]: [Side; 2],
    alpha: f32,
) -> Result<Vec<Option<Flow>>, OpError> {
    let dy = run.take_gradient();
    let (a_shape, b_shape) = (run.shape(0), run.shape(1));
    let sizes = Sizes::new(&left.seen(a_shape), &right.seen(b_shape))?;
    let (m, k, n) = (sizes.m, sizes.k, sizes.n);
    let flow = |side: Side, index: usize, rows: usize, columns: usize| {
        let other = run.input(1 - index)?;
        let (data, other_side) = (other.slice::<f32>(), [right, left][index]);
        let starts = Starts::new(other.shape(), other_side);
        let mut full = run.tensor(&[&sizes.batch[..], &[rows, columns]].concat());
        let outs = full.slice_mut::<f32>().chunks_exact_mut((rows * columns).max(1));
        for (text, (at, out)) in batches(&sizes).into_iter().zip(outs).enumerate() {
            let dy = Strided::rows(&dy.slice::<f32>()[text * m * n..][..m * n], m, n);
            let (a, b) = if index == 0 {
                (dy, starts.matrix(data, at[1], [k, n]).transposed())
            } else {
                (starts.matrix(data, at[0], [m, k]).transposed(), dy)
            };
            gemm::add_matmul(out, a, b, alpha, false);
        }
        let batch = [&sizes.batch_a, &sizes.batch_b][index];
        let seen = [&batch[..], &[rows, columns]].concat();
        let summed = sum_to(full, &seen, run.pool);
        Ok::<_, OpError>(side.unseen(&summed, run.shape(index), run.pool))
    };
    let da = if run.wants(0) { Some(flow(left, 0, m, k)?.into()) } else { None };
    let db = if run.wants(1) { Some(flow(right, 1, k, n)?.into()) } else { None };
    run.pool.recycle(dy);
    Ok(vec![da, db])
}

/// Where the matrices of an operand start, and their strides.
struct Starts {
    batch: Vec<usize>,
    batch_strides: Vec<usize>,
    strides: [usize; 2],
}

impl Starts {
    fn new(shape: &[usize], side: Side) -> Self {
        let (sizes, strides) = (side.seen(shape), side.seen(&strides_of(shape)));
        let rank = sizes.len();
        if rank < 2 {
            return Self { batch: Vec::new(), batch_strides: Vec::new(), strides: [1, 1] };
        }
        Self {
            batch: sizes[..rank - 2].to_vec(),
            batch_strides: strides[..rank - 2].to_vec(),
            strides: [strides[rank - 2], strides[rank - 1]],
        }
    }

    fn matrix<'a>(&self, data: &'a [f32], index: usize, size: [usize; 2]) -> Strided<'a, f32> {
        let (mut rest, mut start) = (index, 0);
        for (&count, &stride) in self.batch.iter().zip(&self.batch_strides).rev() {
            start += rest % count * stride;
            rest /= count;
        }
        let data = if size.contains(&0) { &[] } else { &data[start..] };
        Strided { data, size, strides: self.strides }
    }
}

/// `Gemm` with an activation behind it.
pub(crate) struct FusedGemm;

impl Operator for FusedGemm {
    fn op_type(&self) -> &'static str {
        "FusedGemm"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        Gemm.input_count()
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Gemm.infer(node, inputs)
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        Gemm.channels(node, tensors)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let product = Gemm.kernel(node, constants)?;
        let alpha = node.float_or("activation_alpha", 0.01)?;
        let activation: Box<dyn Fn(&mut [f32]) + Send + Sync> =
            match node.text("activation")?.unwrap_or("") {
                "" => Box::new(|_: &mut [f32]| {}),
                "Relu" => Box::new(|data: &mut [f32]| {
                    elementwise::clamp(data, 0.0, f32::INFINITY);
                }),
                "Tanh" => Box::new(elementwise::tanh),
                "Sigmoid" => Box::new(elementwise::sigmoid),
                "LeakyRelu" => Box::new(move |data: &mut [f32]| {
                    data.iter_mut().for_each(|x| *x = if *x < 0.0 { *x * alpha } else { *x });
                }),
                other => {
                    let expected = "Relu, Tanh, Sigmoid or LeakyRelu";
                    return Err(OpError::value("activation", other, expected));
                }
            };
        Ok(Box::new(move |run: &mut Run| {
            let mut outputs = product.run(run)?;
            for y in &mut outputs {
                for_rows(y.slice_mut::<f32>(), 1, |_, values| activation(values));
            }
            Ok(outputs)
        }))
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let product = Gemm.gradient(node, training)?;
        let alpha = node.float_or("activation_alpha", 0.01)?;
        let slope: Box<dyn Fn(&mut [f32], &[f32]) + Send + Sync> =
            match node.text("activation")?.unwrap_or("") {
                "" => return Ok(product),
                "Relu" => Box::new(|dy: &mut [f32], y: &[f32]| kernels::relu(dy, y, 0.0)),
                "Tanh" => Box::new(kernels::tanh),
                "Sigmoid" => Box::new(kernels::sigmoid),
                "LeakyRelu" if alpha > 0.0 => {
                    Box::new(move |dy: &mut [f32], y: &[f32]| kernels::relu(dy, y, alpha))
                }
                _ => return Err(OpError::NoGradient),
            };
        gradient(product.reads().output(0), move |run: &mut Backward| {
            let mut du = run.take_gradient();
            let y = run.output(0).slice::<f32>();
            for_rows(du.slice_mut::<f32>(), 1, |first, du| slope(du, &y[first..][..du.len()]));
            run.gradients[0] = Some(du);
            product.backward(run)
        })
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        Gemm.macs(node, inputs, outputs)
    }

    fn keeps_constant(&self, input: usize) -> bool {
        Gemm.keeps_constant(input)
    }

    fn widens_half(&self) -> bool {
        true
    }
}
