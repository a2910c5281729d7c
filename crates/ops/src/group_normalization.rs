//! `InstanceNormalization` (opset 1; Ulyanov et al., 2016, arXiv:1607.08022) and
//! `GroupNormalization` (opset 21; Wu & He, 2018, arXiv:1803.08494):
//! y = (x − mean) / √(variance + ε) · scale + bias, mean and variance over a channel or a group of
//! channels of one item, scale and bias per channel.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::channels::{Blocks, Channels, Place, Port, Size, Tensors, input, output};
use crate::gradient::gradient;
use crate::kernels::{for_rows, normalize as rows};
use crate::real::{by_real, rounded_to, widened};
use crate::row_math::RowMath;
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required,
};

pub(crate) struct InstanceNormalization;

impl Operator for InstanceNormalization {
    fn op_type(&self) -> &'static str {
        "InstanceNormalization"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        let spatial: Vec<usize> = (2..tensors.rank(Port::Input(0))?).collect();
        let mut channels = Channels::like_input(tensors, &spatial);
        (1..3).for_each(|index| channels.tie(tensors, input(index, 0), output(0, 1)));
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let epsilon = node.float_or("epsilon", 1e-5)?;
        Ok(Box::new(move |run: &mut Run| normalize(run, None, epsilon)))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let epsilon = node.float_or("epsilon", 1e-5)?;
        gradient(Reads::NOTHING.input(0).input(1), move |run| back(run, None, epsilon))
    }
}

pub(crate) struct GroupNormalization;

impl Operator for GroupNormalization {
    fn op_type(&self) -> &'static str {
        "GroupNormalization"
    }

    fn since_opset(&self) -> i64 {
        21
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        group_count(node)?;
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        let spatial: Vec<usize> = (2..tensors.rank(Port::Input(0))?).collect();
        let mut channels = Channels::like_input(tensors, &spatial);
        (1..3).for_each(|index| channels.tie(tensors, input(index, 0), output(0, 1)));
        // A group goes as a whole: the others keep their statistics.
        let (x, groups) = (input(0, 1), group_count(node).ok()?);
        let size = tensors.size(x)?;
        let each = size / groups;
        channels.tie_factor(x, x, [each, groups, each]);
        let place = Place::Attribute("num_groups");
        let blocks = Blocks { axis: x, from: 0, up_to: size, per: each };
        channels.sizes.push(Size { place, blocks });
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let (groups, epsilon) = (group_count(node)?, node.float_or("epsilon", 1e-5)?);
        Ok(Box::new(move |run: &mut Run| normalize(run, Some(groups), epsilon)))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let (groups, epsilon) = (group_count(node)?, node.float_or("epsilon", 1e-5)?);
        gradient(Reads::NOTHING.input(0).input(1), move |run| back(run, Some(groups), epsilon))
    }
}

fn group_count(node: &Node) -> Result<usize, OpError> {
    let groups = node.int_or("num_groups", 0)?;
    let count = usize::try_from(groups).ok().filter(|&groups| groups > 0);
    count.ok_or_else(|| OpError::value("num_groups", groups, "at least 1"))
}

/// Normalizes by groups of channels; `None` makes every channel a group.
fn normalize(run: &Run, groups: Option<usize>, epsilon: f32) -> Result<Vec<Tensor>, OpError> {
    let x = widened(run.input(0)?);
    if x.rank() < 2 {
        return Err(OpError::value("the input", x.shape(), "batch and channels"));
    }
    let channels = x.shape()[1];
    let groups = groups.unwrap_or(channels);
    if channels > 0 && !channels.is_multiple_of(groups) {
        return Err(OpError::value("num_groups", groups, format!("a divisor of {channels}")));
    }
    let y = by_real!(x, 0, T => normalize_as::<T>(run, &x, groups, epsilon))?;
    Ok(vec![rounded_to(run.input(0)?.dtype(), y)])
}

fn normalize_as<T: RowMath>(
    run: &Run,
    x: &Tensor,
    groups: usize,
    epsilon: f32,
) -> Result<Tensor, OpError> {
    let channels = x.shape()[1];
    let parameter = |index: usize| -> Result<Vec<T>, OpError> {
        let tensor = run.input(index)?;
        if tensor.shape() != [channels] {
            return Err(OpError::shapes(x.shape(), tensor.shape()));
        }
        let found = tensor.dtype();
        let tensor = tensor.converted(T::DTYPE).map_err(|_| OpError::DType { index, found })?;
        Ok(tensor.values::<T>().into_owned())
    };
    let (scale, bias) = (parameter(1)?, parameter(2)?);
    let mut y = run.pool.tensor(x.dtype(), x.shape());
    if x.element_count() == 0 {
        return Ok(y);
    }
    let inner: usize = x.shape()[2..].iter().product();
    let each = channels / groups;
    let row_size = each * inner;
    let values = x.slice::<T>();
    for_rows(y.slice_mut::<T>(), row_size, |first, rows| {
        for (index, out) in rows.chunks_exact_mut(row_size).enumerate() {
            let at = first + index;
            let x = &values[at * row_size..(at + 1) * row_size];
            let (mean, variance) = T::statistics(x);
            let inverse = T::ONE / (variance + T::of(f64::from(epsilon))).sqrt();
            let planes = out.chunks_exact_mut(inner).zip(x.chunks_exact(inner));
            for (plane, (out, x)) in planes.enumerate() {
                let channel = at % groups * each + plane;
                T::affine(out, x, mean, inverse * scale[channel], bias[channel]);
            }
        }
    });
    Ok(y)
}

/// With x̂ = (x − mean)·s, s = 1/√(variance + ε), g = dy·scale and n values to a group:
/// dx = s·(g − Σg/n − x̂·Σ(g·x̂)/n); dscale = Σ dy·x̂ and dbias = Σ dy of each channel.
fn back(
    run: &mut Backward,
    groups: Option<usize>,
    epsilon: f32,
) -> Result<Vec<Option<Flow>>, OpError> {
    let dy = run.take_gradient();
    let x = run.input(0)?;
    let channels = x.shape()[1];
    let each = channels / groups.unwrap_or(channels).max(1);
    let inner: usize = x.shape()[2..].iter().product();
    let row_size = (each * inner).max(1);
    let (values, flow, scale) = (x.slice::<f32>(), dy.slice::<f32>(), run.input(1)?.slice::<f32>());
    // Per plane: mean and s of its group, Σ dy and Σ dy·x̂.
    let planes = x.element_count() / inner.max(1);
    let mut found = run.tensor(&[planes, 4]);
    for_rows(found.slice_mut::<f32>(), each * 4, |first, rows| {
        for (index, group) in rows.chunks_exact_mut(each * 4).enumerate() {
            let at = (first + index) * row_size;
            let (mean, variance) = f32::statistics(&values[at..at + row_size]);
            let inverse = 1.0 / (variance + epsilon).sqrt();
            for (plane, found) in group.chunks_exact_mut(4).enumerate() {
                let range = at + plane * inner..at + (plane + 1) * inner;
                let (sum, product) = rows::flow_sums(&flow[range.clone()], &values[range], mean);
                found.copy_from_slice(&[mean, inverse, sum, product * inverse]);
            }
        }
    });
    let found_of = found.slice::<f32>();
    let mut dx = run.tensor(run.shape(0));
    for_rows(dx.slice_mut::<f32>(), row_size, |first, out| {
        for (index, out) in out.chunks_exact_mut(row_size).enumerate() {
            let at = first + index;
            let group = &found_of[at * each * 4..(at + 1) * each * 4];
            let channel = |plane: usize| scale[at * each % channels + plane];
            let over = |of: usize| {
                let term = |(plane, found): (usize, &[f32])| channel(plane) * found[of];
                group.chunks_exact(4).enumerate().map(term).sum::<f32>() / row_size as f32
            };
            let (sum, product) = (over(2), over(3));
            let (mean, inverse) = (group[0], group[1]);
            for (plane, dx) in out.chunks_exact_mut(inner.max(1)).enumerate() {
                let range = at * row_size + plane * inner..at * row_size + (plane + 1) * inner;
                let (x, dy) = (&values[range.clone()], &flow[range]);
                let factors =
                    [channel(plane) * inverse, -inverse * inverse * product, -inverse * sum];
                rows::flow_back(dx, dy, x, mean, factors);
            }
        }
    });
    let sums = |of: usize| {
        let mut sums = run.zeros(&[channels]);
        for (plane, found) in found_of.chunks_exact(4).enumerate() {
            sums.slice_mut::<f32>()[plane % channels] += found[of];
        }
        Flow::from(sums)
    };
    let (dscale, dbias) = (run.wants(1).then(|| sums(3)), run.wants(2).then(|| sums(2)));
    run.pool.recycle(found);
    run.pool.recycle(dy);
    Ok(vec![run.wants(0).then(|| dx.into()), dscale, dbias])
}
