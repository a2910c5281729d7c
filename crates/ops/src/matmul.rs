//! `MatMul` (opset 1 and later), with numpy's rules: leading axes broadcast, vectors gain an axis.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Element, Tensor};

use crate::broadcast::{Loops, broadcast_dims, broadcast_shapes};
use crate::channels::{Channels, Port, Tensors, input, output};
use crate::fact::product;
use crate::gradient::{gradient, sum_to};
use crate::kernels::for_rows_of_work;
use crate::kernels::gemm::{self, PackedB, Right, Strided};
use crate::number::{Number, by_number};
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required,
};

pub(crate) struct MatMul;

/// Sizes of a product: batch axes of both sides and of the result, and m, k, n.
#[derive(Debug, PartialEq)]
pub(crate) struct Sizes {
    pub(crate) batch_a: Vec<usize>,
    pub(crate) batch_b: Vec<usize>,
    pub(crate) batch: Vec<usize>,
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) output: Vec<usize>,
}

impl Sizes {
    pub(crate) fn new(a: &[usize], b: &[usize]) -> Result<Self, OpError> {
        let error = || OpError::shapes(a, b);
        if a.is_empty() || b.is_empty() {
            return Err(error());
        }
        let full_a = if a.len() == 1 { vec![1, a[0]] } else { a.to_vec() };
        let full_b = if b.len() == 1 { vec![b[0], 1] } else { b.to_vec() };
        let (batch_a, matrix_a) = full_a.split_at(full_a.len() - 2);
        let (batch_b, matrix_b) = full_b.split_at(full_b.len() - 2);
        if matrix_a[1] != matrix_b[0] {
            return Err(error());
        }
        let batch = broadcast_shapes(batch_a, batch_b).map_err(|_| error())?;
        let (m, k, n) = (matrix_a[0], matrix_a[1], matrix_b[1]);
        let mut output = batch.clone();
        output.extend((a.len() > 1).then_some(m));
        output.extend((b.len() > 1).then_some(n));
        Ok(Self { batch_a: batch_a.to_vec(), batch_b: batch_b.to_vec(), batch, m, k, n, output })
    }

    /// Rows of `a` taken together, where `b` is one matrix for all of them.
    pub(crate) fn single_right(&self) -> Option<usize> {
        self.batch_b
            .iter()
            .all(|&size| size == 1)
            .then(|| self.batch.iter().product::<usize>() * self.m)
    }
}

/// The shape of a product of symbolic shapes.
pub(crate) fn product_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let text = |dims: &[Dim]| {
        format!("[{}]", dims.iter().map(Dim::to_string).collect::<Vec<_>>().join(", "))
    };
    let error = || OpError::Shapes { a: text(a), b: text(b) };
    let (Some(ka), Some(kb)) = (a.last(), b.get(b.len().saturating_sub(2))) else {
        return Err(error());
    };
    if let (Some(ka), Some(kb)) = (ka.known(), kb.known())
        && ka != kb
    {
        return Err(error());
    }
    let batch = |dims: &[Dim]| dims[..dims.len().saturating_sub(2)].to_vec();
    let mut dims = broadcast_dims(&batch(a), &batch(b)).map_err(|_| error())?;
    dims.extend((a.len() > 1).then(|| a[a.len() - 2].clone()));
    dims.extend((b.len() > 1).then(|| b[b.len() - 1].clone()));
    Ok(dims)
}

pub(crate) fn infer_product(inputs: &[Option<&Fact>], dtype: DType) -> Result<Vec<Fact>, OpError> {
    let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
    Ok(vec![match (&a.shape, &b.shape) {
        (Some(a), Some(b)) => Fact::new(dtype, product_dims(a, b)?),
        _ => Fact::unranked(dtype),
    }])
}

/// What a product sums over is cut from both sides; rows, columns and batches pass. `axes` are those
/// of each side in the order in which they are multiplied.
pub(crate) fn product_channels(tensors: &Tensors, axes: &[Vec<usize>; 2]) -> Option<Channels> {
    let out = tensors.rank(Port::Output(0)).filter(|&rank| rank >= 2)?;
    let own = |index: usize, back: usize| {
        let axes: &[usize] = &axes[index];
        Some(input(index, *axes.get(axes.len().checked_sub(back)?)?))
    };
    let (rows, columns) = ([own(0, 2)?, own(0, 1)?], [own(1, 2)?, own(1, 1)?]);
    let mut channels = Channels::default();
    channels.tie_summed(tensors, rows[1], columns[0]);
    channels.tie(tensors, rows[0], output(0, out - 2));
    channels.tie(tensors, columns[1], output(0, out - 1));
    for index in [0, 1] {
        for back in 3..=axes[index].len() {
            let own = own(index, back)?;
            if tensors.size(own) != Some(1) {
                channels.tie(tensors, own, output(0, out - back));
            }
        }
    }
    Some(channels)
}

/// m·k·n over all batches.
pub(crate) fn product_macs(inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
    let depth = inputs[0].and_then(|a| a.shape.as_ref()?.last().cloned()).unwrap_or(Dim::Unknown);
    match outputs.first().and_then(|output| output.shape.as_deref()) {
        Some(shape) => &product(shape) * &depth,
        None => Dim::Unknown,
    }
}

impl Operator for MatMul {
    fn op_type(&self) -> &'static str {
        "MatMul"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer_product(inputs, required(inputs, 0)?.dtype)
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        let axes = |index: usize| Some((0..tensors.rank(Port::Input(index))?).collect());
        product_channels(tensors, &[axes(0)?, axes(1)?])
    }

    fn kernel(&self, _: &Node, constants: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let constant = constants.get(1).copied().flatten();
        let packed = constant.and_then(pack_right);
        // The executor drops the original of every constant right side.
        let held = constant.filter(|_| packed.is_none()).map(Tensor::aligned);
        Ok(Box::new(move |run: &mut Run| {
            let (a, found) = (run.input(0)?, run.input(0)?.dtype());
            if found != DType::F32 {
                return by_number!(found, T => multiply_any::<T>(run, held.as_ref()),
                                  found => Err(OpError::DType { index: 0, found }));
            }
            if let Some((packed, shape)) = &packed {
                let sizes = Sizes::new(a.shape(), shape)?;
                let mut y = run.pool.tensor(DType::F32, &sizes.output);
                let rows = sizes.batch.iter().product::<usize>() * sizes.m;
                let a = Strided::rows(a.slice::<f32>(), rows, sizes.k);
                gemm::matmul(y.slice_mut::<f32>(), a, Right::Packed(packed), None);
                return Ok(vec![y]);
            }
            let b = right::<f32>(run, held.as_ref())?;
            let sizes = Sizes::new(a.shape(), b.shape())?;
            let mut y = run.pool.tensor(DType::F32, &sizes.output);
            multiply(y.slice_mut::<f32>(), a.slice::<f32>(), b.slice::<f32>(), &sizes);
            Ok(vec![y])
        }))
    }

    fn gradient(&self, _: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let reads = Reads::NOTHING.input_if(1, training.wants(0)).input_if(0, training.wants(1));
        gradient(reads, product_gradient)
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        product_macs(inputs, outputs)
    }

    fn keeps_constant(&self, input: usize) -> bool {
        input == 1
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// The right side: what the kernel held, or the input.
pub(crate) fn right<'a, T: Element>(
    run: &'a Run,
    held: Option<&'a Tensor>,
) -> Result<&'a Tensor, OpError> {
    match held {
        Some(b) if T::views(b.dtype()) => Ok(b),
        Some(b) => Err(OpError::DType { index: 1, found: b.dtype() }),
        None => run.typed::<T>(1),
    }
}

/// In the arithmetic of any number, by plain loops.
fn multiply_any<T: Number>(run: &Run, held: Option<&Tensor>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (run.input(0)?, right::<T>(run, held)?);
    let sizes = Sizes::new(a.shape(), b.shape())?;
    let (m, k, n) = (sizes.m, sizes.k, sizes.n);
    let mut y = run.pool.tensor(T::DTYPE, &sizes.output);
    let (a, b, pairs) = (a.slice::<T>(), b.slice::<T>(), batches(&sizes));
    for_rows_of_work(y.slice_mut::<T>(), n, sizes.batch.iter().product::<usize>() * m * k * n, {
        |first, rows| {
            for (index, y) in rows.chunks_exact_mut(n).enumerate() {
                let ([at_a, at_b], row) = (pairs[(first + index) / m], (first + index) % m);
                let a = &a[(at_a * m + row) * k..][..k];
                multiply_row(y, a, &b[at_b * k * n..][..k * n]);
            }
        }
    });
    Ok(vec![y])
}

/// y = a·b for one row of a.
pub(crate) fn multiply_row<T: Number>(y: &mut [T], a: &[T], b: &[T]) {
    y.fill(T::ZERO);
    for (&a, b) in a.iter().zip(b.chunks_exact(y.len().max(1))) {
        y.iter_mut().zip(b).for_each(|(y, &b)| *y = y.plus(a.times(b)));
    }
}

/// A constant f32 matrix, packed; other constants stay as they are.
pub(crate) fn pack_right(b: &Tensor) -> Option<(PackedB, Vec<usize>)> {
    if b.dtype() != DType::F32 || b.rank() != 2 || b.element_count() == 0 {
        return None;
    }
    let [k, n] = [b.shape()[0], b.shape()[1]];
    Some((PackedB::new(Strided::rows(&b.values::<f32>(), k, n)), vec![k, n]))
}

/// Batched product of row-major matrices.
fn multiply(y: &mut [f32], a: &[f32], b: &[f32], sizes: &Sizes) {
    let (m, k, n) = (sizes.m, sizes.k, sizes.n);
    if let Some(rows) = sizes.single_right() {
        let b = Right::Strided(Strided::rows(b, k, n));
        return gemm::matmul(y, Strided::rows(a, rows, k), b, None);
    }
    for ([at_a, at_b], y) in batches(sizes).into_iter().zip(y.chunks_exact_mut((m * n).max(1))) {
        let a = Strided::rows(&a[at_a * m * k..][..m * k], m, k);
        let b = Strided::rows(&b[at_b * k * n..][..k * n], k, n);
        gemm::matmul(y, a, Right::Strided(b), None);
    }
}

/// Y = A·B: dA = dY·Bᵀ, dB = Aᵀ·dY, summed over the batch axes that were broadcast.
fn product_gradient(run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
    let sizes = Sizes::new(run.shape(0), run.shape(1))?;
    let (m, k, n) = (sizes.m, sizes.k, sizes.n);
    let dy = run.take_gradient();
    let dy_data = dy.slice::<f32>();
    let mut flows = vec![None, None];
    if run.wants(0) {
        let b = run.input(1)?.slice::<f32>();
        let mut da = run.tensor(&[&sizes.batch[..], &[m, k]].concat());
        let out = da.slice_mut::<f32>();
        if let Some(rows) = sizes.single_right() {
            let b = Strided::rows(b, k, n).transposed();
            gemm::matmul(out, Strided::rows(dy_data, rows, n), Right::Strided(b), None);
        } else {
            let outs = out.chunks_exact_mut((m * k).max(1));
            for (index, ([_, at_b], out)) in batches(&sizes).into_iter().zip(outs).enumerate() {
                let dy = Strided::rows(&dy_data[index * m * n..][..m * n], m, n);
                let b = Strided::rows(&b[at_b * k * n..][..k * n], k, n).transposed();
                gemm::matmul(out, dy, Right::Strided(b), None);
            }
        }
        let full = [&sizes.batch_a[..], &[m, k]].concat();
        flows[0] = Some(sum_to(da, &full, run.pool).reshaped(run.shape(0)).into());
    }
    if run.wants(1) {
        let a = run.input(0)?.slice::<f32>();
        let db = if let Some(rows) = sizes.single_right() {
            let mut db = run.tensor(run.shape(1));
            let dy = Right::Strided(Strided::rows(dy_data, rows, n));
            let a = Strided::rows(a, rows, k).transposed();
            gemm::matmul(db.slice_mut::<f32>(), a, dy, None);
            db
        } else {
            let mut db = run.tensor(&[&sizes.batch[..], &[k, n]].concat());
            let outs = db.slice_mut::<f32>().chunks_exact_mut((k * n).max(1));
            for (index, ([at_a, _], out)) in batches(&sizes).into_iter().zip(outs).enumerate() {
                let a = Strided::rows(&a[at_a * m * k..][..m * k], m, k).transposed();
                let dy = Strided::rows(&dy_data[index * m * n..][..m * n], m, n);
                gemm::matmul(out, a, Right::Strided(dy), None);
            }
            let full = [&sizes.batch_b[..], &[k, n]].concat();
            sum_to(db, &full, run.pool).reshaped(run.shape(1))
        };
        flows[1] = Some(db.into());
    }
    run.pool.recycle(dy);
    Ok(flows)
}

/// Which matrix of each side every batch entry of the result multiplies.
pub(crate) fn batches(sizes: &Sizes) -> Vec<[usize; 2]> {
    let loops = Loops::new([&sizes.batch_a, &sizes.batch_b], &sizes.batch);
    let (inner, [step_a, step_b]) = (loops.inner_size(), loops.inner_strides());
    let mut indices = Vec::with_capacity(sizes.batch.iter().product());
    loops.for_each_row(|[a, b]| {
        indices.extend((0..inner).map(|i| [a + i * step_a, b + i * step_b]));
    });
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_gain_and_lose_an_axis() {
        assert_eq!(Sizes::new(&[3], &[3]).unwrap().output, [] as [usize; 0]);
        assert_eq!(Sizes::new(&[3], &[2, 3, 4]).unwrap().output, [2, 4]);
        assert_eq!(Sizes::new(&[2, 1, 5, 3], &[4, 3, 6]).unwrap().output, [2, 4, 5, 6]);
    }

    #[test]
    fn depths_must_agree() {
        let error = Sizes::new(&[2, 3], &[4, 2]).unwrap_err();
        assert_eq!(error.to_string(), "shapes [2, 3] and [4, 2] do not fit together");
    }
}
