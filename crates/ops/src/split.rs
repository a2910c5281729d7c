//! Split: cuts a tensor along an axis. Sizes are an attribute up to opset 12, an input from 13.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::channels::{Channels, Place, Port, Tensors, input, output};
use crate::concat::copy_columns;
use crate::fact::resolve_axis;
use crate::gradient::gradient;
use crate::squeeze::resolve_axes;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct Split;

/// Sizes of the parts: as given, or even, the last one smaller (`num_outputs`, opset 18).
fn sizes(node: &Node, given: Option<Vec<i64>>, size: usize) -> Result<Vec<usize>, OpError> {
    let count = node.outputs.len();
    let given = match given {
        Some(given) => Some(given),
        None => node.ints("split")?.map(<[i64]>::to_vec),
    };
    let count = count.max(1);
    let parts: Vec<usize> = if let Some(given) = given {
        given.iter().filter_map(|&part| usize::try_from(part).ok()).collect()
    } else {
        let each = size.div_ceil(count);
        (0..count).map(|i| each.min(size.saturating_sub(i * each))).collect()
    };
    if parts.len() == count
        && parts.iter().try_fold(0_usize, |sum, &part| sum.checked_add(part)) == Some(size)
    {
        return Ok(parts);
    }
    Err(OpError::value("split", parts, format!("{count} sizes that add up to {size}")))
}

impl Operator for Split {
    fn op_type(&self) -> &'static str {
        "Split"
    }

    fn since_opset(&self) -> i64 {
        2
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let Some(shape) = &x.shape else {
            return Ok(vec![Fact::unranked(x.dtype); node.outputs.len()]);
        };
        let axis = node.int_or("axis", 0)?;
        let axis = resolve_axis(axis, shape.len())
            .ok_or_else(|| OpError::value("axis", axis, format!("below rank {}", shape.len())))?;
        let given = inputs.get(1).copied().flatten();
        let known = given.and_then(Fact::known_elements);
        let is_open = given.is_some() && known.is_none();
        let parts: Vec<Dim> = match shape[axis].known() {
            Some(size) if !is_open => {
                sizes(node, known, size as usize)?.into_iter().map(Dim::from).collect()
            }
            _ => vec![Dim::Unknown; node.outputs.len()],
        };
        let mut start = Some(0);
        let facts = parts.into_iter().map(|part| {
            let mut shape = shape.clone();
            shape[axis] = part.clone();
            let mut fact = Fact::new(x.dtype, shape);
            let end = start.zip(part.known()).map(|(start, part)| start + part as usize);
            if let (Some(elements), Some(range)) = (x.elements(), start.zip(end))
                && let Some(part) = elements.get(range.0..range.1)
            {
                fact.set_elements(part.to_vec());
            }
            start = end;
            fact
        });
        Ok(facts.collect())
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        let rank = tensors.rank(Port::Input(0))?;
        let axis = resolve_axis(node.int_or("axis", 0).ok()?, rank)?;
        let mut channels = Channels::default();
        let mut start = 0;
        for index in 0..tensors.outputs.len() {
            channels.tie_all(tensors, Port::Output(index), Port::Input(0), &[axis]);
            let part = output(index, axis);
            let count = tensors.size(part)?;
            channels.tie_range(part, 0, input(0, axis), start, count);
            start += count;
            if node.input(1).is_some() {
                channels.held(tensors, Place::InputElement(1, index), part);
            } else if node.attribute("split").is_some() {
                channels.held(tensors, Place::AttributeElement("split", index), part);
            } else {
                // Even parts stay even.
                channels.tie(tensors, part, output(0, axis));
            }
        }
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(for_every_type(
            |index| index == 0,
            move |run: &mut Run| {
                let x = run.input(0)?;
                let axis = resolve_axes(&[node.int_or("axis", 0)?], x.rank())?[0];
                let parts =
                    sizes(&node, run.optional(1).and_then(Tensor::to_i64), x.shape()[axis])?;
                parts_of(run, axis, &parts)
            },
        ))
    }

    /// dx is the parts side by side, zero where a part has no gradient.
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let node = node.clone();
        gradient(Reads::NOTHING.input(1), move |run| {
            let shape = run.shape(0);
            let axis = resolve_axes(&[node.int_or("axis", 0)?], shape.len())?[0];
            let given = run.inputs.get(1).and_then(Option::as_ref).and_then(Tensor::to_i64);
            let parts = sizes(&node, given, shape[axis])?;
            let inner: usize = shape[axis + 1..].iter().product();
            let row = shape[axis] * inner;
            let is_whole = (0..parts.len()).all(|part| run.gradient(part).is_some());
            let mut dx = if is_whole { run.tensor(shape) } else { run.zeros(shape) };
            let mut start = 0;
            for (index, part) in parts.iter().enumerate() {
                let width = part * inner;
                if let Some(dy) = run.gradient(index) {
                    copy_columns(dx.slice_mut::<f32>(), row, start, dy.slice::<f32>(), width);
                }
                start += width;
            }
            Ok(vec![Some(dx.into())])
        })
    }
}

/// Input 0 cut along an axis into parts of the sizes given, which add up to its size.
pub(crate) fn parts_of(run: &Run, axis: usize, parts: &[usize]) -> Result<Vec<Tensor>, OpError> {
    let x = run.input(0)?;
    check_movable(0, x)?;
    let inner: usize = x.shape()[axis + 1..].iter().product();
    let row = x.shape()[axis] * inner;
    let mut start = 0;
    let mut outputs = Vec::with_capacity(parts.len());
    for &part in parts {
        let mut shape = x.shape().to_vec();
        shape[axis] = part;
        let mut y = run.pool.tensor(x.dtype(), &shape);
        let width = part * inner;
        by_width!(x, Word => {
            take_columns::<Word>(words_mut(&mut y), width, words(x), row, start);
        });
        outputs.push(y);
        start += width;
    }
    Ok(outputs)
}

/// Copies columns `start..start + width` out of rows of `row`.
pub(crate) fn take_columns<T: Copy>(y: &mut [T], width: usize, x: &[T], row: usize, start: usize) {
    if width == 0 {
        return;
    }
    for (to, from) in y.chunks_exact_mut(width).zip(x.chunks_exact(row)) {
        to.copy_from_slice(&from[start..start + width]);
    }
}
