//! The product of two operands, summed over the indices that nothing needs any more.

use std::collections::BTreeMap;

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::indexing::strides_of;
use crate::matmul::MatMul;
use crate::number::{Number, by_number};
use crate::transpose::permute;
use crate::words::{by_width, check_movable, words, words_mut};
use crate::{OpError, Operator, Pool, Run};

/// A tensor with a different index on each axis.
pub(super) struct Operand {
    pub(super) indices: Vec<u32>,
    tensor: Tensor,
}

/// Terms of a sum from which on a product is worth the packing of its matrices. Does not look at
/// the other sizes, so that no row depends on how many there are.
const PACKED_MIN: usize = 16;

impl Operand {
    /// An axis of size 1 goes where its index is longer elsewhere; axes of one index become their
    /// diagonal.
    pub(super) fn new(
        pool: &Pool,
        x: &Tensor,
        indices: &[u32],
        sizes: &BTreeMap<u32, usize>,
    ) -> Result<Self, OpError> {
        check_movable(0, x)?;
        let strides = strides_of(x.shape());
        let (mut kept, mut shape, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        for ((&index, &size), &stride) in indices.iter().zip(x.shape()).zip(&strides) {
            if size == 1 && sizes[&index] != 1 {
                continue;
            }
            if let Some(axis) = kept.iter().position(|&other| other == index) {
                steps[axis] += stride;
            } else {
                kept.push(index);
                shape.push(size);
                steps.push(stride);
            }
        }
        let tensor = if shape.iter().product::<usize>() == x.element_count() {
            x.reshaped(&shape)
        } else {
            let mut y = pool.declared(x.dtype(), &shape)?;
            by_width!(x, Word => diagonal::<Word>(words_mut(&mut y), words(x), &shape, &steps));
            y
        };
        Ok(Self { indices: kept, tensor })
    }

    fn size_of(&self, indices: &[u32]) -> usize {
        let pairs = self.indices.iter().zip(self.tensor.shape());
        pairs.filter(|(index, _)| indices.contains(index)).map(|(_, &size)| size).product()
    }

    fn shape_of(&self, indices: &[u32]) -> Vec<usize> {
        let size = |index| self.size_of(std::slice::from_ref(index));
        indices.iter().map(size).collect()
    }

    /// Axes in the order of `indices`, which are all of them.
    fn permuted(&self, indices: &[u32], pool: &Pool) -> Result<Tensor, OpError> {
        if self.indices == indices {
            return Ok(self.tensor.clone());
        }
        let axis_of = |index: &u32| {
            self.indices.iter().position(|own| own == index).expect("every index has an axis")
        };
        let perm: Vec<usize> = indices.iter().map(axis_of).collect();
        let x = &self.tensor;
        let mut y = pool.declared(x.dtype(), &self.shape_of(indices))?;
        by_width!(x, Word => permute::<Word>(words_mut(&mut y), words(x), x.shape(), &perm));
        Ok(y)
    }

    /// Summed over the indices that are not kept.
    fn summed(self, is_kept: impl Fn(&u32) -> bool, pool: &Pool) -> Result<Self, OpError> {
        let (kept, dropped): (Vec<u32>, Vec<u32>) = self.indices.iter().partition(|i| is_kept(i));
        if dropped.is_empty() {
            return Ok(self);
        }
        let x = self.permuted(&[kept.as_slice(), &dropped].concat(), pool)?;
        let (count, shape) = (self.size_of(&dropped), self.shape_of(&kept));
        let mut y = pool.declared(x.dtype(), &shape)?;
        by_number!(x.dtype(), T => {
            let y = y.slice_mut::<T>();
            y.fill(T::default());
            let rows = x.slice::<T>().chunks_exact(count.max(1));
            for (y, row) in y.iter_mut().zip(rows) {
                *y = row.iter().fold(T::default(), |sum, &x| sum.plus(x));
            }
        }, found => return Err(OpError::DType { index: 0, found }));
        Ok(Self { indices: kept, tensor: y })
    }

    /// The product with another, summed over what is not needed.
    pub(super) fn times(
        self,
        other: Self,
        is_needed: &dyn Fn(&u32) -> bool,
        pool: &Pool,
    ) -> Result<Self, OpError> {
        let (shared_a, shared_b) = (other.indices.clone(), self.indices.clone());
        let a = self.summed(|index| is_needed(index) || shared_a.contains(index), pool)?;
        let b = other.summed(|index| is_needed(index) || shared_b.contains(index), pool)?;
        let shared = |index: &u32| b.indices.contains(index);
        let (both, left): (Vec<u32>, Vec<u32>) = a.indices.iter().partition(|i| shared(i));
        let (batch, summed): (Vec<u32>, Vec<u32>) = both.iter().partition(|i| is_needed(i));
        let right: Vec<u32> = b.indices.iter().copied().filter(|i| !both.contains(i)).collect();
        let rows = a.permuted(&[batch.as_slice(), &left, &summed].concat(), pool)?;
        let columns = b.permuted(&[batch.as_slice(), &summed, &right].concat(), pool)?;
        let sizes = [a.size_of(&batch), a.size_of(&left), a.size_of(&summed), b.size_of(&right)];
        let shape = [a.shape_of(&batch), a.shape_of(&left), b.shape_of(&right)].concat();
        let product = product(&rows, &columns, sizes, &shape, pool)?;
        Ok(Self { indices: [batch, left, right].concat(), tensor: product })
    }

    /// What is left is summed and put in the order of the output.
    pub(super) fn arranged(self, output: &[u32], pool: &Pool) -> Result<Tensor, OpError> {
        self.summed(|index| output.contains(index), pool)?.permuted(output, pool)
    }
}

/// Elements at multiples of `steps`, in row-major order of `shape`.
fn diagonal<T: Copy>(y: &mut [T], x: &[T], shape: &[usize], steps: &[usize]) {
    for (place, y) in y.iter_mut().enumerate() {
        let (mut rest, mut start) = (place, 0);
        for (&size, &step) in shape.iter().zip(steps).rev() {
            start += rest % size * step;
            rest /= size;
        }
        *y = x[start];
    }
}

/// `[batch, m, k] · [batch, k, n]`, as `shape`.
fn product(
    a: &Tensor,
    b: &Tensor,
    [batch, m, k, n]: [usize; 4],
    shape: &[usize],
    pool: &Pool,
) -> Result<Tensor, OpError> {
    let mut y = pool.declared(a.dtype(), shape)?;
    if a.dtype() == DType::F32 && k >= PACKED_MIN && y.element_count() > 0 {
        let kernel = MatMul.kernel(&Node::default(), &[])?;
        let inputs = vec![Some(a.reshaped(&[batch, m, k])), Some(b.reshaped(&[batch, k, n]))];
        return Ok(kernel.run(&mut Run { inputs, pool })?.remove(0).reshaped(shape));
    }
    by_number!(a.dtype(), T => multiply::<T>(y.slice_mut(), a.slice(), b.slice(), [m, k, n]),
               found => return Err(OpError::DType { index: 0, found }));
    Ok(y)
}

fn multiply<T: Number>(y: &mut [T], a: &[T], b: &[T], [m, k, n]: [usize; 3]) {
    y.fill(T::default());
    if y.is_empty() || k == 0 {
        return;
    }
    for (row, y) in y.chunks_exact_mut(n).enumerate() {
        let batch = row / m;
        let b = b[batch * k * n..][..k * n].chunks_exact(n);
        for (&a, b) in a[row * k..][..k].iter().zip(b) {
            y.iter_mut().zip(b).for_each(|(y, &b)| *y = y.plus(a.times(b)));
        }
    }
}
