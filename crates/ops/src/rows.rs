//! Rows along any axis: gathered where they do not lie together, computed on, and put back.

use attar_tensor::Element;

use crate::kernels::for_rows;
use crate::{OpError, fact::resolve_axis};

/// A tensor as [outer, size, inner], the axis in the middle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AxisView {
    pub(crate) size: usize,
    pub(crate) inner: usize,
}

impl AxisView {
    /// # Errors
    /// When there is no such axis.
    pub(crate) fn new(shape: &[usize], axis: i64) -> Result<Self, OpError> {
        let axis = resolve_axis(axis, shape.len())
            .ok_or_else(|| OpError::value("axis", axis, format!("below {}", shape.len())))?;
        Ok(Self { size: shape[axis], inner: shape[axis + 1..].iter().product() })
    }

    /// Calls `work` with slices of whole rows of `data`, to change in place.
    pub(crate) fn change_rows<T: Element + Default>(
        self,
        data: &mut [T],
        work: impl Fn(&mut [T]) + Send + Sync,
    ) {
        let Self { size, inner } = self;
        if inner == 1 {
            return for_rows(data, size, |_, rows| work(rows));
        }
        for_rows(data, size * inner, |_, blocks| {
            let mut rows = vec![T::default(); size * inner];
            for block in blocks.chunks_exact_mut(size * inner) {
                for (i, row) in rows.chunks_exact_mut(size).enumerate() {
                    row.iter_mut().zip(block[i..].iter().step_by(inner)).for_each(|(x, &y)| *x = y);
                }
                work(&mut rows);
                for (i, row) in rows.chunks_exact(size).enumerate() {
                    block[i..].iter_mut().step_by(inner).zip(row).for_each(|(y, &x)| *y = x);
                }
            }
        });
    }

    /// As [`change_rows`](Self::change_rows), with the same rows of `other` to read.
    pub(crate) fn change_rows_beside<T: Element + Default>(
        self,
        data: &mut [T],
        other: &[T],
        work: impl Fn(&mut [T], &[T]) + Send + Sync,
    ) {
        let Self { size, inner } = self;
        if inner == 1 {
            return for_rows(data, size, |first, rows| {
                work(rows, &other[first * size..][..rows.len()]);
            });
        }
        let block_size = size * inner;
        for_rows(data, block_size, |first, blocks| {
            let (mut row, mut beside) = (vec![T::default(); size], vec![T::default(); size]);
            let others = other[first * block_size..].chunks_exact(block_size);
            for (block, other) in blocks.chunks_exact_mut(block_size).zip(others) {
                for i in 0..inner {
                    let copy = |row: &mut [T], block: &[T]| {
                        row.iter_mut()
                            .zip(block[i..].iter().step_by(inner))
                            .for_each(|(x, &y)| *x = y);
                    };
                    copy(&mut row, block);
                    copy(&mut beside, other);
                    work(&mut row, &beside);
                    block[i..].iter_mut().step_by(inner).zip(&row).for_each(|(y, &x)| *y = x);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_middle_axis_are_gathered_and_put_back() {
        let mut data: Vec<f32> = (0..12_u8).map(f32::from).collect();
        let view = AxisView::new(&[2, 3, 2], 1).unwrap();
        view.change_rows(&mut data, |rows| {
            for row in rows.chunks_exact_mut(3) {
                row.reverse();
            }
        });
        assert_eq!(data, [4.0, 5.0, 2.0, 3.0, 0.0, 1.0, 10.0, 11.0, 8.0, 9.0, 6.0, 7.0]);
        assert!(AxisView::new(&[2], 1).is_err());
    }
}
