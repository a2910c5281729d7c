//! Concat (opset 4 and later): joins tensors along an axis.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::channels::{Channels, Port, Tensors, input, output};
use crate::fact::resolve_axis;
use crate::gradient::gradient;
use crate::split::take_columns;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct Concat;

fn axis_of(node: &Node, rank: usize) -> Result<usize, OpError> {
    let axis = node.int("axis")?.ok_or_else(|| OpError::value("axis", "absent", "an attribute"))?;
    resolve_axis(axis, rank)
        .ok_or_else(|| OpError::value("axis", axis, format!("below rank {rank}")))
}

impl Operator for Concat {
    fn op_type(&self) -> &'static str {
        "Concat"
    }

    fn since_opset(&self) -> i64 {
        4
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=usize::MAX
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let facts: Vec<&Fact> =
            (0..inputs.len()).map(|i| required(inputs, i)).collect::<Result<_, _>>()?;
        let dtype = facts[0].dtype;
        let shapes: Option<Vec<&Vec<Dim>>> = facts.iter().map(|fact| fact.shape.as_ref()).collect();
        let Some(shapes) = shapes else { return Ok(vec![Fact::unranked(dtype)]) };
        let axis = axis_of(node, shapes[0].len())?;
        let mut shape = shapes[0].clone();
        for other in &shapes[1..] {
            if other.len() != shape.len() {
                let text = |shape: &[Dim]| format!("rank {}", shape.len());
                return Err(OpError::Shapes { a: text(&shape), b: text(other) });
            }
            shape[axis] = &shape[axis] + &other[axis];
        }
        let mut fact = Fact::new(dtype, shape);
        let elements: Option<Vec<&[Dim]>> = facts.iter().map(|fact| fact.elements()).collect();
        if let (Some(elements), Some(1)) = (elements, fact.rank()) {
            fact.set_elements(elements.concat());
        }
        Ok(vec![fact])
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        let axis = axis_of(node, tensors.rank(Port::Output(0))?).ok()?;
        let mut channels = Channels::default();
        let mut start = 0;
        for index in 0..tensors.inputs.len() {
            channels.tie_all(tensors, Port::Input(index), Port::Output(0), &[axis]);
            let Some(count) = tensors.size(input(index, axis)) else {
                channels.whole.push(output(0, axis));
                continue;
            };
            channels.tie_range(input(index, axis), 0, output(0, axis), start, count);
            start += count;
        }
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(for_every_type(
            |_| true,
            move |run: &mut Run| {
                let first = run.input(0)?;
                check_movable(0, first)?;
                let axis = axis_of(&node, first.rank())?;
                let mut shape = first.shape().to_vec();
                shape[axis] = 0;
                for index in 0..run.inputs.len() {
                    let x = run.input(index)?;
                    let same = x.rank() == shape.len()
                        && (0..shape.len()).all(|i| i == axis || x.shape()[i] == shape[i]);
                    if !same {
                        return Err(OpError::shapes(first.shape(), x.shape()));
                    }
                    if x.dtype() != first.dtype() {
                        return Err(OpError::DType { index, found: x.dtype() });
                    }
                    shape[axis] = shape[axis].saturating_add(x.shape()[axis]);
                }
                let mut y = run.pool.declared(first.dtype(), &shape)?;
                let inner: usize = shape[axis + 1..].iter().product();
                let row = shape[axis] * inner;
                let mut start = 0;
                for x in run.inputs.iter().flatten() {
                    let width = x.shape()[axis] * inner;
                    by_width!(x, Word => copy_columns::<Word>(words_mut(&mut y), row, start, words(x), width));
                    start += width;
                }
                Ok(vec![y])
            },
        ))
    }

    /// Each dx is its part of dy.
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let node = node.clone();
        gradient(Reads::NOTHING, move |run| {
            let dy = run.take_gradient();
            let axis = axis_of(&node, dy.rank())?;
            let inner: usize = dy.shape()[axis + 1..].iter().product();
            let row = dy.shape()[axis] * inner;
            let mut start = 0;
            let mut flows = Vec::with_capacity(run.shapes.len());
            for (index, shape) in run.shapes.iter().enumerate() {
                let width = shape[axis] * inner;
                flows.push(run.wants(index).then(|| {
                    let mut dx = run.tensor(shape);
                    let (to, from) = (dx.slice_mut::<f32>(), dy.slice::<f32>());
                    take_columns(to, width, from, row, start);
                    dx.into()
                }));
                start += width;
            }
            run.pool.recycle(dy);
            Ok(flows)
        })
    }
}

/// Copies rows of `width` into rows of `row`, beginning at column `start`.
pub(crate) fn copy_columns<T: Copy>(y: &mut [T], row: usize, start: usize, x: &[T], width: usize) {
    if width == 0 {
        return;
    }
    for (to, from) in y.chunks_exact_mut(row).zip(x.chunks_exact(width)) {
        to[start..start + width].copy_from_slice(from);
    }
}
