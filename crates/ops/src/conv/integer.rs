//! Convolution of 8-bit integers with exact 32-bit sums, for `ConvInteger` and `QLinearConv`:
//! Σ (x − `x_zero)·(w` − `w_zero`), padding counting as `x_zero`.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use super::settings::group;
use super::{output_shape, wide::source};
use crate::geometry::{Axis, Geometry};
use crate::kernels::for_rows;
use crate::kernels::gemm::{PackedB8, Strided, matmul_u8_i8};
use crate::{OpError, Pool};

/// Weights of a convolution of integers, packed.
pub(crate) struct IntegerWeights {
    geometry: Geometry,
    group: usize,
    /// [outputs, inputs per group, kernel…]
    pub(crate) shape: Vec<usize>,
    /// One matrix [inputs·taps, outputs] per group, moved down by 128 where it is u8.
    packed: Vec<PackedB8>,
    /// What the move takes from a zero point.
    shift: i64,
}

/// Zero points: one of x, one or one per output of w.
pub(crate) struct ZeroPoints {
    pub(crate) x: i64,
    pub(crate) w: Vec<i64>,
}

impl ZeroPoints {
    /// Reads tensors of zero points; absent ones are 0.
    ///
    /// # Errors
    /// Tensors of other sizes.
    pub(crate) fn new(
        x: Option<&Tensor>,
        w: Option<&Tensor>,
        outputs: usize,
    ) -> Result<Self, OpError> {
        let list = |zero: Option<&Tensor>, index: usize, most: usize| {
            let Some(zero) = zero else { return Ok(vec![0]) };
            let found = OpError::DType { index, found: zero.dtype() };
            let values = zero.to_i64().ok_or(found)?;
            let fits = values.len() == 1 || values.len() == most;
            if fits { Ok(values) } else { Err(OpError::shapes(&[most], zero.shape())) }
        };
        Ok(Self { x: list(x, 2, 1)?[0], w: list(w, 3, outputs)? })
    }
}

impl IntegerWeights {
    /// # Errors
    /// Weights that are not 8-bit or cannot be split into the groups.
    pub(crate) fn new(node: &Node, w: &Tensor, index: usize) -> Result<Self, OpError> {
        let (shape, group) = (w.shape(), group(node)?);
        if shape.len() < 3 || shape.contains(&0) || !shape[0].is_multiple_of(group) {
            return Err(OpError::value("the weight", shape, format!("outputs in {group} groups")));
        }
        let (values, shift) = match w.dtype() {
            DType::I8 => (w.values::<i8>(), 0),
            DType::U8 => (w.values::<u8>().iter().map(|&w| (w ^ 0x80) as i8).collect(), 128),
            found => return Err(OpError::DType { index, found }),
        };
        let (rows, depth) = (shape[0] / group, shape[1..].iter().product::<usize>());
        let pack = |w| PackedB8::new(Strided::rows(w, rows, depth).transposed());
        Ok(Self {
            geometry: Geometry::new(node, &shape[2..])?,
            group,
            shape: shape.to_vec(),
            packed: values.chunks_exact(rows * depth).map(pack).collect(),
            shift,
        })
    }

    /// Convolves `x` and calls `finish(output, sums)` for every plane of the result, which it
    /// turns into what it stores; gives the shape and the planes.
    ///
    /// # Errors
    /// An input that does not fit the weights.
    pub(crate) fn run<T: Copy + Default + Send + attar_tensor::Element>(
        &self,
        pool: &Pool,
        x: &Tensor,
        zeros: &ZeroPoints,
        finish: impl Fn(usize, i32) -> T + Sync,
    ) -> Result<Tensor, OpError> {
        let shape = x.shape();
        let channels = self.shape[1].checked_mul(self.group);
        if shape.len() != self.shape.len() || Some(shape[1]) != channels {
            return Err(OpError::shapes(shape, &self.shape));
        }
        // i8 moves up by 128, and its zero point with it.
        let (x, x_zero): (std::borrow::Cow<[u8]>, i64) = match x.dtype() {
            DType::U8 => (x.values::<u8>(), zeros.x),
            DType::I8 => {
                (x.values::<i8>().iter().map(|&x| (x as u8) ^ 0x80).collect(), zeros.x + 128)
            }
            found => return Err(OpError::DType { index: 0, found }),
        };
        let axes = self.geometry.axes(&shape[2..])?;
        let outputs = self.shape[0];
        let output = output_shape(shape[0], outputs, axes.iter().map(|axis| axis.output), false)?;
        let plane_out: usize = axes.iter().map(|axis| axis.output).product();
        let depth: usize = self.shape[1..].iter().product();
        output_shape(plane_out, depth, std::iter::empty(), false)?;
        let mut y = pool.tensor(T::DTYPE, &output);
        let part = Part { axes: &axes, depth, pixels: plane_out, x_zero: x_zero as u8 };
        let per_group = outputs / self.group;
        let inputs = (x.len() / (shape[0] * self.group).max(1)).max(1);
        let planes = y.slice_mut::<T>().chunks_exact_mut((per_group * plane_out).max(1));
        for (index, (y, x)) in planes.zip(x.chunks_exact(inputs)).enumerate() {
            let g = index % self.group;
            let (sums, row_sums) = part.sums(pool, x, &self.packed[g], per_group);
            let values: &[i32] = sums.slice();
            for_rows(y, plane_out, |first, rows| {
                for (offset, row) in rows.chunks_exact_mut(plane_out).enumerate() {
                    let o = first + offset;
                    let zero = (zeros.w[(g * per_group + o) % zeros.w.len()] - self.shift) as i32;
                    for (pixel, y) in row.iter_mut().enumerate() {
                        let sum = values[pixel * per_group + o];
                        let sum = sum.wrapping_sub(zero.wrapping_mul(row_sums[pixel]));
                        *y = finish(g * per_group + o, sum);
                    }
                }
            });
            pool.recycle(sums);
        }
        Ok(y)
    }
}

/// One group of one image.
struct Part<'a> {
    axes: &'a [Axis],
    depth: usize,
    pixels: usize,
    x_zero: u8,
}

impl Part<'_> {
    /// Σ (x − zero)·w as [pixel, output], and Σ (x − zero) of every pixel's patch.
    fn sums(&self, pool: &Pool, x: &[u8], w: &PackedB8, outputs: usize) -> (Tensor, Vec<i32>) {
        let mut patches = pool.tensor(DType::U8, &[self.pixels, self.depth]);
        let rows = patches.slice_mut::<u8>();
        for_rows(rows, self.depth, |first, rows| {
            for (index, row) in rows.chunks_exact_mut(self.depth).enumerate() {
                self.patch(row, x, first + index);
            }
        });
        let zero = i32::from(self.x_zero);
        let depth = self.depth as i32;
        let row_sums = (patches.slice::<u8>().chunks_exact(self.depth))
            .map(|row| row.iter().map(|&x| i32::from(x)).sum::<i32>() - depth * zero)
            .collect();
        let mut sums = pool.tensor(DType::I32, &[self.pixels, outputs]);
        let left = Strided::rows(patches.slice::<u8>(), self.pixels, self.depth);
        let zeros = vec![self.x_zero; self.pixels];
        matmul_u8_i8(sums.slice_mut(), left, &zeros, w);
        pool.recycle(patches);
        (sums, row_sums)
    }

    /// What the window over one output sees: [channel, tap].
    fn patch(&self, row: &mut [u8], x: &[u8], pixel: usize) {
        let taps: usize = self.axes.iter().map(|axis| axis.kernel).product();
        let plane: usize = self.axes.iter().map(|axis| axis.input).product();
        for tap in 0..taps {
            let place = source(self.axes, pixel, tap);
            for (channel, row) in row.chunks_exact_mut(taps).enumerate() {
                row[tap] = place.map_or(self.x_zero, |place| x[channel * plane + place]);
            }
        }
    }
}
