//! Gather (opset 1 and later): rows of a tensor picked by index along an axis, of any type.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::channels::{Channels, Port, Tensors, input, output};
use crate::fact::resolve_axis;
use crate::gradient::{add_rows, gradient};
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Pool, Reads, Run, Training, required,
};

pub(crate) struct Gather;

fn axis_of(node: &Node, rank: usize) -> Result<usize, OpError> {
    let axis = node.int_or("axis", 0)?;
    resolve_axis(axis, rank)
        .ok_or_else(|| OpError::value("axis", axis, format!("below rank {rank}")))
}

impl Operator for Gather {
    fn op_type(&self) -> &'static str {
        "Gather"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, indices) = (required(inputs, 0)?, required(inputs, 1)?);
        let (Some(shape), Some(picked)) = (&x.shape, &indices.shape) else {
            return Ok(vec![Fact::unranked(x.dtype)]);
        };
        let axis = axis_of(node, shape.len())?;
        let dims = [&shape[..axis], picked, &shape[axis + 1..]].concat();
        let mut fact = Fact::new(x.dtype, dims);
        if let (Some(elements), Some(picked), 1) =
            (x.elements(), indices.known_elements(), shape.len())
        {
            let chosen: Option<Vec<Dim>> = picked
                .iter()
                .map(|&index| Some(elements[resolve_axis(index, elements.len())?].clone()))
                .collect();
            if let Some(chosen) = chosen {
                fact.set_elements(chosen);
            }
        }
        Ok(vec![fact])
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        let (rank, picked) = (tensors.rank(Port::Input(0))?, tensors.rank(Port::Input(1))?);
        let axis = axis_of(node, rank).ok()?;
        let mut channels = Channels::default();
        for other in (0..rank).filter(|&other| other != axis) {
            let to = if other < axis { other } else { other + picked - 1 };
            channels.tie(tensors, input(0, other), output(0, to));
        }
        (0..picked).for_each(|own| channels.tie(tensors, input(1, own), output(0, axis + own)));
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(for_every_type(
            |index| index == 0,
            move |run: &mut Run| {
                let (x, indices) = (run.input(0)?, run.input(1)?);
                check_movable(0, x)?;
                let axis = axis_of(&node, x.rank())?;
                let size = x.shape()[axis];
                let picked = picked_rows(indices, size)?;
                let shape = [&x.shape()[..axis], indices.shape(), &x.shape()[axis + 1..]].concat();
                let inner: usize = x.shape()[axis + 1..].iter().product();
                let mut y = run.pool.declared(x.dtype(), &shape)?;
                let width = x.dtype().bits() / 8;
                if x.bytes().as_ptr().addr().is_multiple_of(width) {
                    by_width!(x, Word => pick::<Word>(words_mut(&mut y), words(x), size, inner, &picked));
                } else {
                    pick(y.bytes_mut(), x.bytes(), size, inner * width, &picked);
                }
                Ok(vec![y])
            },
        ))
    }

    fn reads_in_place(&self, input: usize) -> bool {
        input == 0
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let node = node.clone();
        gradient(Reads::NOTHING.input(1), move |run: &mut Backward| {
            let shape = run.shape(0).to_vec();
            let axis = axis_of(&node, shape.len())?;
            let picked = picked_rows(run.input(1)?, shape[axis])?;
            let dy = run.take_gradient();
            Ok(vec![Some(rows_gradient(dy, &shape, axis, picked, run.pool))])
        })
    }
}

/// The rows that indices name, those below zero counted from the end.
pub(crate) fn picked_rows(indices: &Tensor, size: usize) -> Result<Vec<usize>, OpError> {
    let found = indices.dtype();
    let indices = indices.to_i64().ok_or(OpError::DType { index: 1, found })?.into_iter();
    let row = |index: i64| {
        let error = || OpError::value("an index", index, format!("within −{size}..{size}"));
        resolve_axis(index, size).ok_or_else(error)
    };
    indices.map(row).collect()
}

/// dX: row i of dY added to the row of X that it was read from. A table of which few rows were read
/// gets these alone.
pub(crate) fn rows_gradient(
    dy: Tensor,
    shape: &[usize],
    axis: usize,
    picked: Vec<usize>,
    pool: &Pool,
) -> Flow {
    if axis == 0 && shape.len() >= 2 && picked.len() < shape[0] {
        let rows = dy.reshaped(&[picked.len(), shape[1..].iter().product()]);
        return Flow::Rows { shape: shape.to_vec(), indices: picked, rows };
    }
    let mut dx = pool.tensor(DType::F32, shape);
    let values = dx.slice_mut::<f32>();
    values.fill(0.0);
    let inner: usize = shape[axis + 1..].iter().product();
    let (block, rows) = (shape[axis] * inner, picked.len() * inner);
    if block > 0 && rows > 0 {
        let blocks = values.chunks_exact_mut(block).zip(dy.slice::<f32>().chunks_exact(rows));
        blocks.for_each(|(dx, dy)| add_rows(dx, &picked, dy));
    }
    pool.recycle(dy);
    dx.into()
}

/// Copies rows of `inner` elements: for each block of `size` rows, those picked.
pub(crate) fn pick<T: Copy>(y: &mut [T], x: &[T], size: usize, inner: usize, picked: &[usize]) {
    if inner == 0 || picked.is_empty() {
        return;
    }
    for (to, from) in y.chunks_exact_mut(picked.len() * inner).zip(x.chunks_exact(size * inner)) {
        for (to, &index) in to.chunks_exact_mut(inner).zip(picked) {
            to.copy_from_slice(&from[index * inner..(index + 1) * inner]);
        }
    }
}
