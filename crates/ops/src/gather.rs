//! Gather (opset 1 and later): rows of a tensor picked by index along an axis, of any type.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::fact::resolve_axis;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

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

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(for_every_type(
            |index| index == 0,
            move |run: &mut Run| {
                let (x, indices) = (run.input(0)?, run.input(1)?);
                check_movable(0, x)?;
                let axis = axis_of(&node, x.rank())?;
                let size = x.shape()[axis];
                let picked = indices
                    .to_i64()
                    .ok_or(OpError::DType { index: 1, found: indices.dtype() })?
                    .into_iter()
                    .map(|index| {
                        resolve_axis(index, size).ok_or_else(|| {
                            OpError::value("an index", index, format!("within −{size}..{size}"))
                        })
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                let shape = [&x.shape()[..axis], indices.shape(), &x.shape()[axis + 1..]].concat();
                let inner: usize = x.shape()[axis + 1..].iter().product();
                let mut y = run.pool.declared(x.dtype(), &shape)?;
                by_width!(x, Word => pick::<Word>(words_mut(&mut y), words(x), size, inner, &picked));
                Ok(vec![y])
            },
        ))
    }
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
