//! `LayerNormalization` (opset 17; ONNX Runtime's optimizer writes it into older ones), and attar's own form with the residual addition before it:
//! y = (x − mean) / √(variance + ε) · scale + bias over the axes from `axis` on
//! (Ba, Kiros & Hinton, 2016, arXiv:1607.06450).

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::broadcast::{broadcast_shapes, broadcast_strides};
use crate::channels::{Channels, Port, Tensors, input};
use crate::clip::in_place_or_copy;
use crate::fact::resolve_axis;
use crate::gradient::{add_assign, gradient};
use crate::kernels::{elementwise, for_rows, normalize};
use crate::normalization_gradient::{Form, Kind, place};
use crate::real::{by_real, rounded_to, widened};
use crate::row_math::RowMath;
use crate::{
    ATTAR_DOMAIN, Backward, Fact, Flow, Forward, Gradient, Kernel, OpError, Operator, Reads, Run,
    Training, required,
};

pub(crate) struct LayerNormalization;

impl Operator for LayerNormalization {
    fn op_type(&self) -> &'static str {
        "LayerNormalization"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let mut facts = vec![x.with_dtype(x.dtype)];
        if node.outputs.len() > 1 {
            let axis = node.int_or("axis", -1)?;
            let stash = stash_type(node)?;
            let statistics = match &x.shape {
                Some(shape) => {
                    let axis = resolve_axis(axis, shape.len()).unwrap_or(0);
                    let dims = shape.iter().enumerate();
                    let dims = dims.map(|(i, d)| if i < axis { d.clone() } else { Dim::Known(1) });
                    Fact::new(stash, dims.collect())
                }
                None => Fact::unranked(stash),
            };
            facts.resize(node.outputs.len(), statistics);
        }
        Ok(facts)
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        let rank = tensors.rank(Port::Input(0))?;
        let first = resolve_axis(node.int_or("axis", -1).ok()?, rank)?;
        let mut channels = Channels::default();
        channels.tie_all(tensors, Port::Input(0), Port::Output(0), &[]);
        (1..tensors.inputs.len()).for_each(|index| channels.tie_broadcast(tensors, index));
        channels.statistics.extend((first..rank).map(|axis| input(0, axis)));
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let (axis, epsilon) = (node.int_or("axis", -1)?, node.float_or("epsilon", 1e-5)?);
        let stash = stash_type(node)?;
        let gives_statistics = node.outputs.iter().skip(1).any(|output| !output.is_empty());
        Ok(Box::new(move |run: &mut Run| {
            let is_plain = run.inputs.iter().flatten().all(|input| input.dtype() == DType::F32);
            let is_empty = run.input(0)?.element_count() == 0;
            if is_plain && !(is_empty && gives_statistics) && has_row_parameters(run, axis) {
                let row_size = check(run, 1, axis)?;
                let mut outputs = Vec::new();
                if gives_statistics {
                    outputs = statistics(run.input(0)?, row_size, axis, epsilon, stash);
                }
                let y = in_place_or_copy(run)?;
                outputs.insert(0, normalized(run, y, row_size, 1, epsilon)?);
                return Ok(outputs);
            }
            let x = widened(run.input(0)?);
            by_real!(x, 0, T => any_layer::<T>(run, &x, axis, epsilon, stash))
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let (axis, epsilon) = (node.int_or("axis", -1)?, node.float_or("epsilon", 1e-5)?);
        let form = Form { kind: Kind::Deviation, epsilon, scale: 1, bias: Some(2) };
        gradient(Reads::NOTHING.input(0).input(1), move |run: &mut Backward| {
            let mut flows = vec![None; 3];
            let dy = run.gradients[0].take().unwrap_or_else(|| run.zeros(run.shape(0)));
            let x = run.input(0)?;
            let axis = resolve_axis(axis, x.rank()).expect("the forward run checked the axis");
            let row = &x.shape()[axis..];
            let mut dx = form.flow_back(dy, x, row, &mut flows, run)?;
            if run.gradient(1).is_some() || run.gradient(2).is_some() {
                add_statistics(&mut dx, run, row.iter().product(), epsilon)?;
            }
            place(&mut flows, Some(0), dx, run);
            Ok(flows)
        })
    }
}

/// Adds what flows from the mean m, dm/n, and from the inverse deviation r, −dr·r²·x̂/n.
fn add_statistics(
    dx: &mut Tensor,
    run: &Backward,
    size: usize,
    epsilon: f32,
) -> Result<(), OpError> {
    let of = |index: usize| run.gradient(index).and_then(Tensor::to_f32);
    let (means, inverses, x) = (of(1), of(2), run.input(0)?.slice::<f32>());
    let at = |values: &Option<Vec<f32>>, row: usize| values.as_ref().map_or(0.0, |v| v[row]);
    let size = size.max(1);
    let rows = dx.slice_mut::<f32>().chunks_exact_mut(size).zip(x.chunks_exact(size));
    for (row, (dx, x)) in rows.enumerate() {
        let (mean, variance) = f32::statistics(x);
        let inverse = 1.0 / (variance + epsilon).sqrt();
        let (first, second) = (at(&means, row), at(&inverses, row) * inverse.powi(3));
        let factor = 1.0 / size as f32;
        dx.iter_mut().zip(x).for_each(|(dx, x)| *dx += (first - second * (x - mean)) * factor);
    }
    Ok(())
}

/// The type of the statistics.
fn stash_type(node: &Node) -> Result<DType, OpError> {
    match node.int_or("stash_type", 1)? {
        1 => Ok(DType::F32),
        16 => Ok(DType::BF16),
        other => Err(OpError::value("stash_type", other, "1 (f32) or 16 (bf16)")),
    }
}

/// Mean and inverse deviation of every row of an f32 tensor.
fn statistics(x: &Tensor, row_size: usize, axis: i64, epsilon: f32, stash: DType) -> Vec<Tensor> {
    let rows = x.slice::<f32>().chunks_exact(row_size.max(1)).map(f32::statistics);
    let (means, inverses): (Vec<f32>, Vec<f32>) =
        rows.map(|(mean, variance)| (mean, 1.0 / (variance + epsilon).sqrt())).unzip();
    let axis = resolve_axis(axis, x.rank()).expect("the axis was checked");
    let mut shape = x.shape().to_vec();
    shape[axis..].fill(1);
    [means, inverses].map(|values| rounded_to(stash, Tensor::new(&shape, &values))).to_vec()
}

/// Whether scale and bias have the shape of a row, rather than one that broadcasts.
fn has_row_parameters(run: &Run, axis: i64) -> bool {
    let Some(x) = run.optional(0) else { return false };
    let Some(axis) = resolve_axis(axis, x.rank()) else { return true };
    let row = &x.shape()[axis..];
    run.inputs.iter().skip(1).flatten().all(|parameter| parameter.shape() == row)
}

/// Any float type, any parameters that broadcast, and the statistics.
fn any_layer<T: RowMath>(
    run: &Run,
    x: &Tensor,
    axis: i64,
    epsilon: f32,
    stash: DType,
) -> Result<Vec<Tensor>, OpError> {
    let axis = resolve_axis(axis, x.rank())
        .ok_or_else(|| OpError::value("axis", axis, format!("below {}", x.rank())))?;
    let row_size: usize = x.shape()[axis..].iter().product();
    let row_count: usize = x.shape()[..axis].iter().product();
    let mut y = run.pool.tensor(x.dtype(), x.shape());
    let (mut means, mut inverses) = (Vec::new(), Vec::new());
    let values = x.slice::<T>();
    let out = y.slice_mut::<T>();
    for row in (0..row_count).map(|row| row * row_size..(row + 1) * row_size) {
        let (mean, variance) = T::statistics(&values[row.clone()]);
        let inverse = T::ONE / (variance + T::of(f64::from(epsilon))).sqrt();
        T::affine(&mut out[row.clone()], &values[row], mean, inverse, T::ZERO);
        means.push(mean);
        inverses.push(inverse);
    }
    scale_and_shift::<T>(run, out, x.shape())?;
    let mut shape = x.shape().to_vec();
    shape[axis..].fill(1);
    let statistic = |values: &[T]| rounded_to(stash, Tensor::new(&shape, values));
    let y = rounded_to(run.input(0)?.dtype(), y);
    Ok(vec![y, statistic(&means), statistic(&inverses)])
}

/// y ← y · scale + bias, broadcast to the shape of y.
pub(crate) fn scale_and_shift<T: RowMath>(
    run: &Run,
    y: &mut [T],
    shape: &[usize],
) -> Result<(), OpError> {
    let parameter = |index: usize| -> Result<Option<(Vec<T>, Vec<usize>)>, OpError> {
        let Some(tensor) = run.optional(index) else { return Ok(None) };
        if broadcast_shapes(tensor.shape(), shape)? != shape {
            return Err(OpError::shapes(shape, tensor.shape()));
        }
        let found = tensor.dtype();
        let converted = tensor.converted(T::DTYPE).map_err(|_| OpError::DType { index, found })?;
        let strides = broadcast_strides(tensor.shape(), shape);
        Ok(Some((converted.values::<T>().into_owned(), strides)))
    };
    let (scale, bias) = (parameter(1)?, parameter(2)?);
    let at = |strides: &[usize], index: usize| -> usize {
        let (mut rest, mut place) = (index, 0);
        for (&size, stride) in shape.iter().zip(strides).rev() {
            place += rest % size * stride;
            rest /= size;
        }
        place
    };
    for (index, y) in y.iter_mut().enumerate() {
        if let Some((scale, strides)) = &scale {
            *y = *y * scale[at(strides, index)];
        }
        if let Some((bias, strides)) = &bias {
            *y += bias[at(strides, index)];
        }
    }
    Ok(())
}

/// `LayerNormalization(a + b)`; made by fusion. A second output is a + b itself.
pub(crate) struct SkipLayerNormalization;

impl Operator for SkipLayerNormalization {
    fn op_type(&self) -> &'static str {
        "SkipLayerNormalization"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=4
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype); node.outputs.len()])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let (axis, epsilon) = (node.int_or("axis", -1)?, node.float_or("epsilon", 1e-5)?);
        let keeps_sum = node.outputs.len() > 1;
        Ok(Box::new(move |run: &mut Run| {
            let row_size = check(run, 2, axis)?;
            let y = residual_sum(run, row_size)?;
            let sum = keeps_sum.then(|| {
                let mut sum = run.pool.tensor(DType::F32, y.shape());
                sum.slice_mut::<f32>().copy_from_slice(y.slice::<f32>());
                sum
            });
            let y = normalized(run, y, row_size, 2, epsilon)?;
            Ok(std::iter::once(y).chain(sum).collect())
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let (axis, epsilon) = (node.int_or("axis", -1)?, node.float_or("epsilon", 1e-5)?);
        Ok(Box::new(SkipGradient { axis, epsilon, keeps_sum: node.outputs.len() > 1 }))
    }
}

/// d(a + b) is what the normalization gives and what flows into the sum itself; da = db = d(a + b).
struct SkipGradient {
    axis: i64,
    epsilon: f32,
    keeps_sum: bool,
}

impl Gradient for SkipGradient {
    fn reads(&self) -> Reads {
        Reads::NOTHING.input(2)
    }

    fn forward(&self, forward: &mut Forward, _: &dyn Kernel) -> Result<Vec<Tensor>, OpError> {
        let run = &mut forward.run;
        let row_size = check(run, 2, self.axis)?;
        let sum = residual_sum(run, row_size)?;
        let mut y = run.pool.tensor(DType::F32, sum.shape());
        let scale = run.input(2)?.slice::<f32>();
        let bias = run.optional(3).map(Tensor::slice::<f32>);
        let sums = sum.slice::<f32>();
        for_rows(y.slice_mut::<f32>(), row_size, |first, rows| {
            for (index, row) in rows.chunks_exact_mut(row_size).enumerate() {
                row.copy_from_slice(&sums[(first + index) * row_size..][..row_size]);
                normalize::layer_normalize_rows(row, scale, bias, self.epsilon);
            }
        });
        forward.saved.push(sum.clone());
        Ok(std::iter::once(y).chain(self.keeps_sum.then_some(sum)).collect())
    }

    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let mut flows = vec![None; 4];
        let sum = run.saved.pop().expect("the forward run saved the sum");
        let dy = run.gradients[0].take();
        let mut dsum = match dy {
            Some(dy) => {
                let axis = resolve_axis(self.axis, sum.rank()).expect("the axis was checked");
                let row = &sum.shape()[axis..];
                let form =
                    Form { kind: Kind::Deviation, epsilon: self.epsilon, scale: 2, bias: Some(3) };
                form.flow_back(dy, &sum, row, &mut flows, run)?
            }
            None => run.zeros(sum.shape()),
        };
        if let Some(other) = run.gradient(1) {
            add_assign(dsum.slice_mut::<f32>(), other.slice::<f32>());
        }
        run.pool.recycle(sum);
        flows[0] = run.wants(0).then(|| dsum.clone().into());
        flows[1] = run.wants(1).then(|| dsum.into());
        Ok(flows)
    }
}

/// a + b, in place of `a` where it dies here.
fn residual_sum(run: &mut Run, row_size: usize) -> Result<Tensor, OpError> {
    let (a, b) = (run.input(0)?, run.typed::<f32>(1)?);
    if a.shape() != b.shape() {
        return Err(OpError::shapes(a.shape(), b.shape()));
    }
    let mut sum = in_place_or_copy(run)?;
    let b = run.input(1)?.slice::<f32>();
    for_rows(sum.slice_mut::<f32>(), row_size, |first, rows| {
        elementwise::add_assign(rows, &b[first * row_size..][..rows.len()]);
    });
    Ok(sum)
}

/// The size of a normalized row, once scale (at `first`) and bias fit it.
fn check(run: &Run, first: usize, axis: i64) -> Result<usize, OpError> {
    let x = run.typed::<f32>(0)?;
    let axis = resolve_axis(axis, x.rank())
        .ok_or_else(|| OpError::value("axis", axis, format!("below {}", x.rank())))?;
    let row = &x.shape()[axis..];
    let row_size: usize = row.iter().product();
    let scale = run.typed::<f32>(first)?;
    if scale.element_count() != row_size {
        return Err(OpError::shapes(row, scale.shape()));
    }
    if let Some(bias) = run.optional(first + 1).filter(|b| b.element_count() != row_size) {
        return Err(OpError::shapes(row, bias.shape()));
    }
    Ok(row_size)
}

fn normalized(
    run: &Run,
    mut y: Tensor,
    row_size: usize,
    first: usize,
    epsilon: f32,
) -> Result<Tensor, OpError> {
    let scale = run.input(first)?.slice::<f32>();
    let bias = run.optional(first + 1).map(Tensor::slice::<f32>);
    for_rows(y.slice_mut::<f32>(), row_size, |_, rows| {
        normalize::layer_normalize_rows(rows, scale, bias, epsilon);
    });
    Ok(y)
}
