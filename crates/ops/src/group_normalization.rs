//! `InstanceNormalization` (opset 1; Ulyanov et al., 2016, arXiv:1607.08022) and
//! `GroupNormalization` (opset 21; Wu & He, 2018, arXiv:1803.08494):
//! y = (x − mean) / √(variance + ε) · scale + bias, mean and variance over a channel or a group of
//! channels of one item, scale and bias per channel.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::kernels::for_rows;
use crate::real::{by_real, rounded_to, widened};
use crate::row_math::RowMath;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

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

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let epsilon = node.float_or("epsilon", 1e-5)?;
        Ok(Box::new(move |run: &mut Run| normalize(run, None, epsilon)))
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

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let (groups, epsilon) = (group_count(node)?, node.float_or("epsilon", 1e-5)?);
        Ok(Box::new(move |run: &mut Run| normalize(run, Some(groups), epsilon)))
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
