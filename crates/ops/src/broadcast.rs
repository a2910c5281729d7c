//! ONNX broadcasting: shapes aligned at the end, sizes of 1 repeated.

use attar_graph::Dim;
use attar_tensor::{DType, Element, Tensor};

use crate::kernels::for_rows;
use crate::{Fact, OpError, Pool};

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
pub(crate) fn broadcast_facts(facts: &[&Fact], dtype: DType) -> Result<Fact, OpError> {
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
        let mut cursor = self.cursor(0);
        (0..row_count).for_each(|_| visit(cursor.step()));
    }

    /// The offsets from row number `row` on.
    pub(crate) fn cursor(&self, row: usize) -> Cursor<'_, N> {
        let outer = self.sizes.len() - 1;
        let (mut index, mut offsets, mut rest) = (vec![0; outer], [0; N], row);
        for axis in (0..outer).rev() {
            index[axis] = rest % self.sizes[axis].max(1);
            rest /= self.sizes[axis].max(1);
            (0..N).for_each(|i| offsets[i] += self.strides[i][axis] * index[axis]);
        }
        Cursor { loops: self, index, offsets }
    }

    /// Calls `work` with each innermost row of `out` and the inputs' offsets at its start, on every
    /// thread if there is enough to do. A row that is all of `out` may come in pieces.
    pub(crate) fn for_each_row_of<T: Send>(
        &self,
        out: &mut [T],
        work: impl Fn(&mut [T], [usize; N]) + Send + Sync,
    ) {
        let strides = self.inner_strides();
        if self.sizes.len() == 1 {
            return for_rows(out, 1, |first, row| work(row, strides.map(|stride| stride * first)));
        }
        let inner = self.inner_size();
        for_rows(out, inner, |first, rows| {
            let mut cursor = self.cursor(first);
            rows.chunks_exact_mut(inner).for_each(|row| work(row, cursor.step()));
        });
    }
}

/// A place among the rows of [`Loops`].
pub(crate) struct Cursor<'a, const N: usize> {
    loops: &'a Loops<N>,
    index: Vec<usize>,
    offsets: [usize; N],
}

impl<const N: usize> Cursor<'_, N> {
    /// The offsets here; then steps to the next row.
    pub(crate) fn step(&mut self) -> [usize; N] {
        let (offsets, loops) = (self.offsets, self.loops);
        for axis in (0..self.index.len()).rev() {
            self.index[axis] += 1;
            (0..N).for_each(|i| self.offsets[i] += loops.strides[i][axis]);
            if self.index[axis] < loops.sizes[axis] {
                break;
            }
            (0..N).for_each(|i| self.offsets[i] -= loops.strides[i][axis] * self.index[axis]);
            self.index[axis] = 0;
        }
        offsets
    }
}

/// How a row of an element-wise operation reads an operand.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a, T> {
    Row(&'a [T]),
    Scalar(T),
}

impl<'a, T: Copy> Operand<'a, T> {
    /// `size` elements from `start` on, or one for all of them where the stride is 0.
    pub(crate) fn new(x: &'a [T], start: usize, stride: usize, size: usize) -> Self {
        if stride == 0 { Self::Scalar(x[start]) } else { Self::Row(&x[start..start + size]) }
    }
}

/// y = value(a, b), element by element; a and b broadcast. `R` is read as `dtype`.
pub(crate) fn zip<A: Element, B: Element, R: Element>(
    pool: &Pool,
    [a, b]: [&Tensor; 2],
    dtype: DType,
    value: impl Fn(A, B) -> R + Send + Sync,
) -> Result<Tensor, OpError> {
    zip_rows::<A, B, R>(pool, [a, b], dtype, |row, a, b| match (a, b) {
        (Operand::Row(a), Operand::Row(b)) => {
            row.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = value(a, b));
        }
        (Operand::Row(a), Operand::Scalar(b)) => {
            row.iter_mut().zip(a).for_each(|(y, &a)| *y = value(a, b));
        }
        (Operand::Scalar(a), Operand::Row(b)) => {
            row.iter_mut().zip(b).for_each(|(y, &b)| *y = value(a, b));
        }
        (Operand::Scalar(a), Operand::Scalar(b)) => row.fill(value(a, b)),
    })
}

/// As [`zip`], a row at a time.
pub(crate) fn zip_rows<A: Element, B: Element, R: Element>(
    pool: &Pool,
    [a, b]: [&Tensor; 2],
    dtype: DType,
    work: impl Fn(&mut [R], Operand<A>, Operand<B>) + Send + Sync,
) -> Result<Tensor, OpError> {
    let shape = broadcast_shapes(a.shape(), b.shape())?;
    let loops = Loops::new([a.shape(), b.shape()], &shape);
    let mut y = pool.tensor(dtype, &shape);
    let (a, b, [stride_a, stride_b]) = (a.slice::<A>(), b.slice::<B>(), loops.inner_strides());
    loops.for_each_row_of(y.slice_mut::<R>(), |row, [at_a, at_b]| {
        let size = row.len();
        work(row, Operand::new(a, at_a, stride_a, size), Operand::new(b, at_b, stride_b, size));
    });
    Ok(y)
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
    fn pieces_of_the_result_read_the_inputs_of_their_rows() {
        let (a, b) = (&[2, 1, 2][..], &[3, 1][..]);
        let loops = Loops::new([a, b], &[2, 3, 2]);
        let mut cursor = loops.cursor(4);
        assert_eq!([cursor.step(), cursor.step()], [[2, 1], [2, 2]]);
    }

    #[test]
    fn a_symbol_beside_a_number_is_that_number() {
        let dims = broadcast_dims(&[Dim::symbol("n"), Dim::Known(1)], &[Dim::Known(4)]).unwrap();
        assert_eq!(dims, [Dim::symbol("n"), Dim::Known(4)]);
    }
}
