//! ONNX broadcasting: shapes aligned at the end, sizes of 1 repeated.

use attar_graph::Dim;

use crate::{Fact, OpError};

/// The shape two shapes broadcast to.
pub(crate) fn broadcast_shapes(a: &[usize], b: &[usize]) -> Result<Vec<usize>, OpError> {
    let rank = a.len().max(b.len());
    (0..rank)
        .map(|axis| match (aligned(a, rank, axis), aligned(b, rank, axis)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(OpError::shapes(a, b)),
        })
        .collect()
}

fn aligned(shape: &[usize], rank: usize, axis: usize) -> usize {
    let missing = rank - shape.len();
    if axis < missing { 1 } else { shape[axis - missing] }
}

/// The shape that symbolic shapes broadcast to.
///
/// Where one size is a symbol and the other a number above 1, only that number can run, so it is
/// the answer; two different symbols give an unknown.
pub(crate) fn broadcast_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let rank = a.len().max(b.len());
    let one = Dim::Known(1);
    let at = |dims: &[Dim], axis: usize| {
        let missing = rank - dims.len();
        if axis < missing { one.clone() } else { dims[axis - missing].clone() }
    };
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (x, y) if x.same_as(&y) || y == one => Ok(x),
            (x, y) if x == one => Ok(y),
            (Dim::Known(x), Dim::Known(y)) => {
                Err(OpError::Shapes { a: format!("[… {x} …]"), b: format!("[… {y} …]") })
            }
            (x @ Dim::Known(_), _) => Ok(x),
            (_, y @ Dim::Known(_)) => Ok(y),
            _ => Ok(Dim::Unknown),
        })
        .collect()
}

/// The fact of an element-wise result over inputs of any number.
pub(crate) fn broadcast_facts(
    facts: &[&Fact],
    dtype: attar_tensor::DType,
) -> Result<Fact, OpError> {
    let mut shape: Vec<Dim> = Vec::new();
    for fact in facts {
        match &fact.shape {
            Some(dims) => shape = broadcast_dims(&shape, dims)?,
            None => return Ok(Fact::unranked(dtype)),
        }
    }
    Ok(Fact::new(dtype, shape))
}

/// Strides of `shape`, seen as `target`, in elements; 0 along repeated axes.
pub(crate) fn broadcast_strides(shape: &[usize], target: &[usize]) -> Vec<usize> {
    let missing = target.len() - shape.len();
    let mut strides = vec![0; target.len()];
    let mut stride = 1;
    for axis in (0..shape.len()).rev() {
        if shape[axis] != 1 {
            strides[axis + missing] = stride;
        }
        stride *= shape[axis];
    }
    strides
}

/// Loops of an element-wise operation over several inputs, neighbouring axes merged where every
/// input allows it.
pub(crate) struct Loops<const N: usize> {
    /// Sizes of the outer axes, then the innermost one.
    pub(crate) sizes: Vec<usize>,
    /// Per input, strides for the same axes.
    pub(crate) strides: [Vec<usize>; N],
}

impl<const N: usize> Loops<N> {
    pub(crate) fn new(shapes: [&[usize]; N], target: &[usize]) -> Self {
        let full = shapes.map(|shape| broadcast_strides(shape, target));
        let mut sizes: Vec<usize> = Vec::new();
        let mut strides: [Vec<usize>; N] = std::array::from_fn(|_| Vec::new());
        for axis in 0..target.len() {
            if target[axis] == 1 {
                continue;
            }
            // An axis continues the one before where stepping that one equals stepping through
            // all of this one.
            let continues = !sizes.is_empty()
                && (0..N).all(|i| {
                    strides[i].last().is_some_and(|&outer| outer == full[i][axis] * target[axis])
                });
            if continues {
                *sizes.last_mut().expect("not empty") *= target[axis];
                (0..N).for_each(|i| *strides[i].last_mut().expect("not empty") = full[i][axis]);
            } else {
                sizes.push(target[axis]);
                (0..N).for_each(|i| strides[i].push(full[i][axis]));
            }
        }
        if sizes.is_empty() {
            sizes.push(target.iter().product());
            (0..N).for_each(|i| strides[i].push(0));
        }
        Self { sizes, strides }
    }

    pub(crate) fn inner_size(&self) -> usize {
        *self.sizes.last().expect("there is an innermost axis")
    }

    pub(crate) fn inner_strides(&self) -> [usize; N] {
        std::array::from_fn(|i| *self.strides[i].last().expect("there is an innermost axis"))
    }

    /// Calls `visit` with the inputs' offsets at the start of each innermost row, in order.
    pub(crate) fn for_each_row(&self, mut visit: impl FnMut([usize; N])) {
        let outer = self.sizes.len() - 1;
        let row_count: usize = self.sizes[..outer].iter().product();
        let mut index = vec![0; outer];
        let mut offsets = [0; N];
        for _ in 0..row_count {
            visit(offsets);
            for axis in (0..outer).rev() {
                index[axis] += 1;
                (0..N).for_each(|i| offsets[i] += self.strides[i][axis]);
                if index[axis] < self.sizes[axis] {
                    break;
                }
                (0..N).for_each(|i| offsets[i] -= self.strides[i][axis] * index[axis]);
                index[axis] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_axes_merge_where_both_inputs_allow() {
        let loops = Loops::new([&[2, 3, 4], &[4]], &[2, 3, 4]);
        assert_eq!(loops.sizes, [6, 4]);
        let whole = Loops::new([&[2, 3, 4], &[2, 3, 4]], &[2, 3, 4]);
        assert_eq!(whole.sizes, [24]);
    }

    #[test]
    fn rows_visit_every_repeat() {
        let loops = Loops::new([&[2, 1, 2], &[3, 1]], &[2, 3, 2]);
        let mut rows = Vec::new();
        loops.for_each_row(|offsets| rows.push(offsets));
        assert_eq!(rows, [[0, 0], [0, 1], [0, 2], [2, 0], [2, 1], [2, 2]]);
    }

    #[test]
    fn a_symbol_beside_a_number_is_that_number() {
        let dims = broadcast_dims(&[Dim::symbol("n"), Dim::Known(1)], &[Dim::Known(4)]).unwrap();
        assert_eq!(dims, [Dim::symbol("n"), Dim::Known(4)]);
    }
}
