//! `LayerNormalization` (opset 17; ONNX Runtime's optimizer writes it into older ones), and attar's own form with the residual addition before it:
//! y = (x − mean) / √(variance + ε) · scale + bias over the axes from `axis` on
//! (Ba, Kiros & Hinton, 2016, arXiv:1607.06450).

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::broadcast::{broadcast_shapes, broadcast_strides};
use crate::clip::in_place_or_copy;
use crate::fact::resolve_axis;
use crate::kernels::{elementwise, for_rows, normalize};
use crate::real::{by_real, rounded_to, widened};
use crate::row_math::RowMath;
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

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
            let (a, b) = (run.input(0)?, run.typed::<f32>(1)?);
            if a.shape() != b.shape() {
                return Err(OpError::shapes(a.shape(), b.shape()));
            }
            let mut y = in_place_or_copy(run)?;
            let b = run.input(1)?.slice::<f32>();
            for_rows(y.slice_mut::<f32>(), row_size, |first, rows| {
                let start = first * row_size;
                elementwise::add_assign(rows, &b[start..start + rows.len()]);
            });
            let sum = keeps_sum.then(|| {
                let mut sum = run.pool.tensor(DType::F32, y.shape());
                sum.slice_mut::<f32>().copy_from_slice(y.slice::<f32>());
                sum
            });
            let y = normalized(run, y, row_size, 2, epsilon)?;
            Ok(std::iter::once(y).chain(sum).collect())
        }))
    }
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
