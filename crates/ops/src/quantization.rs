//! Scales and zero points: one pair for a tensor, one per index of an axis, or one per block.

use attar_tensor::{DType, Tensor};

use crate::fact::resolve_axis;
use crate::kernels::{for_rows, for_rows_of_work};
use crate::{OpError, Run};

/// Which elements share a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Single,
    /// [outer, size, inner]: one pair per index of the axis in the middle.
    Axis {
        size: usize,
        inner: usize,
    },
    /// One pair per `block` neighbours along the axis, `count` blocks to the axis.
    Blocks {
        size: usize,
        inner: usize,
        block: usize,
        count: usize,
    },
}

/// Scales and zero points of a tensor.
pub(crate) struct Parameters<Z> {
    pub(crate) scales: Vec<f32>,
    pub(crate) zero_points: Vec<Z>,
    layout: Layout,
}

/// Zero points as integers.
pub(crate) fn integer_zero(zero_point: &Tensor) -> Option<Vec<i32>> {
    Some(zero_point.to_i64()?.into_iter().map(|zero| zero as i32).collect())
}

impl<Z: Copy + Default> Parameters<Z> {
    /// Reads them from inputs 1 and 2.
    pub(crate) fn new(
        run: &Run,
        axis: i64,
        block_size: i64,
        read_zero: fn(&Tensor) -> Option<Vec<Z>>,
    ) -> Result<Self, OpError> {
        let (x, scale) = (run.input(0)?, run.input(1)?);
        let is_scale = matches!(
            scale.dtype(),
            DType::F32 | DType::F16 | DType::BF16 | DType::F8E8M0 | DType::I32
        );
        let scales = scale.to_f32().filter(|_| is_scale);
        let scales = scales.ok_or(OpError::DType { index: 1, found: scale.dtype() })?;
        let zero_points = match run.optional(2) {
            Some(zero) => {
                read_zero(zero).ok_or(OpError::DType { index: 2, found: zero.dtype() })?
            }
            None => vec![Z::default(); scales.len()],
        };
        if scales.len() != zero_points.len() {
            return Err(OpError::shapes(&[scales.len()], &[zero_points.len()]));
        }
        let layout = layout(x.shape(), scale, axis, block_size)?;
        Ok(Self { scales, zero_points, layout })
    }

    fn pair(&self, index: usize) -> (f32, Z) {
        (self.scales[index], self.zero_points[index])
    }

    /// The pair of an element.
    pub(crate) fn of(&self, element: usize) -> (f32, Z) {
        self.pair(self.index(element))
    }

    fn index(&self, element: usize) -> usize {
        match self.layout {
            Layout::Single => 0,
            Layout::Axis { size, inner } => element / inner % size,
            Layout::Blocks { size, inner, block, count } => {
                let (outer, place) = (element / (size * inner), element / inner % size);
                (outer * count + place / block) * inner + element % inner
            }
        }
    }

    /// Calls `convert` for every run of elements with one scale and zero point.
    pub(crate) fn each_run<T: Send, S: Sync>(
        &self,
        y: &mut [T],
        x: &[S],
        convert: impl Fn(&mut [T], &[S], f32, Z) + Send + Sync,
    ) where
        Z: Send + Sync,
    {
        let run_size = match self.layout {
            Layout::Single => {
                let (scale, zero_point) = self.pair(0);
                return for_rows(y, 1, |first, y| {
                    convert(y, &x[first..first + y.len()], scale, zero_point);
                });
            }
            Layout::Axis { inner, .. } => inner,
            Layout::Blocks { size, inner: 1, block, .. } if size % block == 0 => block,
            Layout::Blocks { .. } => 1,
        };
        for_rows(y, run_size, |first, y| {
            let x = x[first * run_size..].chunks(run_size);
            for (index, (y, x)) in y.chunks_mut(run_size).zip(x).enumerate() {
                let (scale, zero_point) = self.of((first + index) * run_size);
                convert(y, x, scale, zero_point);
            }
        });
    }
}

/// Elements whose sum is one term, whatever the number of threads.
const TERM_SIZE: usize = 1 << 14;

impl<Z: Copy + Default + Send + Sync> Parameters<Z> {
    /// For every scale, the sum of `term` over the elements that share it.
    pub(crate) fn sum_runs<S: Sync>(
        &self,
        dy: &[f32],
        x: &[S],
        term: impl Fn(&[f32], &[S], f32, Z) -> f64 + Send + Sync,
    ) -> Vec<f64> {
        let mut sums = vec![0.0; self.scales.len()];
        let run_size = match self.layout {
            Layout::Single => TERM_SIZE,
            Layout::Axis { inner, .. } => inner,
            Layout::Blocks { .. } => 1,
        };
        let index = |run: usize| match self.layout {
            Layout::Single => 0,
            _ => self.index(run * run_size),
        };
        let mut terms = vec![0.0; x.len().div_ceil(run_size)];
        for_rows_of_work(&mut terms, 1, x.len(), |first, terms| {
            for (run, sum) in (first..).zip(terms) {
                let (scale, zero_point) = self.pair(index(run));
                let range = run * run_size..((run + 1) * run_size).min(x.len());
                *sum = term(&dy[range.clone()], &x[range], scale, zero_point);
            }
        });
        terms.iter().enumerate().for_each(|(run, term)| sums[index(run)] += term);
        sums
    }
}

fn layout(shape: &[usize], scale: &Tensor, axis: i64, block_size: i64) -> Result<Layout, OpError> {
    if scale.element_count() == 1 && block_size == 0 {
        return Ok(Layout::Single);
    }
    let mismatch = || OpError::shapes(shape, scale.shape());
    let axis = resolve_axis(axis, shape.len())
        .ok_or_else(|| OpError::value("axis", axis, format!("below {}", shape.len())))?;
    let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>().max(1));
    if block_size == 0 {
        let fits = scale.shape() == [size];
        return if fits { Ok(Layout::Axis { size: size.max(1), inner }) } else { Err(mismatch()) };
    }
    let block = usize::try_from(block_size)
        .map_err(|_| OpError::value("block_size", block_size, "0 or greater"))?;
    let count = size.div_ceil(block);
    let mut expected = shape.to_vec();
    expected[axis] = count;
    if scale.shape() != expected {
        return Err(mismatch());
    }
    Ok(Layout::Blocks { size: size.max(1), inner, block, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_find_the_pair_of_their_block() {
        let scales: Vec<f32> = (0..12_u8).map(f32::from).collect();
        // [2, 5, 2] in blocks of 2 along axis 1: scales [2, 3, 2].
        let scale = Tensor::new(&[2, 3, 2], &scales);
        let layout = layout(&[2, 5, 2], &scale, 1, 2).unwrap();
        let parameters = Parameters { zero_points: vec![0; 12], scales, layout };
        let found: Vec<f32> = (0..20).map(|element| parameters.of(element).0).collect();
        let half = [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(found[..10], half);
        assert_eq!(found[10..], half.map(|scale| scale + 6.0));
    }

    #[test]
    fn a_scale_that_fits_no_layout_is_refused() {
        let scale = Tensor::new(&[3], &[1.0_f32; 3]);
        assert!(layout(&[2, 4], &scale, 1, 0).is_err());
        assert!(layout(&[2, 4], &scale, 1, 2).is_err());
        assert!(layout(&[2, 4], &scale, 1, -2).is_err());
    }
}
