//! Elements moved or weighted, axis by axis.

use attar_tensor::Tensor;
use bytemuck::Pod;

use super::taps::Taps;
use crate::kernels::for_rows;
use crate::kernels::resample::{gather_taps, weigh_rows};
use crate::real::Real;
use crate::words::{by_width, check_movable, words, words_mut};
use crate::{OpError, Run};

/// Moves the nearest element to each output.
pub(super) fn nearest(
    y: &mut Tensor,
    x: &Tensor,
    taps: &[Taps],
    extrapolation: f32,
) -> Result<(), OpError> {
    check_movable(0, x)?;
    let fill = Tensor::scalar(extrapolation).converted(x.dtype());
    let fill = fill.expect("movable types hold numbers");
    let (x_shape, y_shape) = (x.shape().to_vec(), y.shape().to_vec());
    by_width!(x, Word => move_words::<Word>(
        words_mut(y), words(x), &x_shape, &y_shape, taps, words::<Word>(&fill)[0],
    ));
    Ok(())
}

fn move_words<T: Pod + Send + Sync>(
    y: &mut [T],
    x: &[T],
    x_shape: &[usize],
    y_shape: &[usize],
    taps: &[Taps],
    fill: T,
) {
    let Some((last, leading)) = taps.split_last() else {
        y.copy_from_slice(x);
        return;
    };
    let (width, width_in) = (y_shape[y_shape.len() - 1], x_shape[x_shape.len() - 1]);
    let repeat = repeat_of(&last.indices, width_in);
    // Where a row comes from, `None` outside the region of interest.
    let source = |row: usize| -> Option<usize> {
        let (mut rest, mut stride, mut at) = (row, 1, 0);
        for (axis, taps) in leading.iter().enumerate().rev() {
            let index = rest % y_shape[axis];
            rest /= y_shape[axis];
            if taps.outside[index] {
                return None;
            }
            at += taps.indices[index] * stride;
            stride *= x_shape[axis];
        }
        Some(at)
    };
    for_rows(y, width, |first, rows| {
        let mut before: Option<(usize, usize)> = None;
        for index in 0..rows.len() / width {
            let (done, rest) = rows.split_at_mut(index * width);
            let row = &mut rest[..width];
            let Some(at) = source(first + index) else {
                row.fill(fill);
                continue;
            };
            if let Some((_, same)) = before.filter(|&(source, _)| source == at) {
                row.copy_from_slice(&done[same * width..(same + 1) * width]);
                continue;
            }
            before = Some((at, index));
            let x = &x[at * width_in..(at + 1) * width_in];
            match repeat {
                Some(1) => row.copy_from_slice(x),
                Some(2) => {
                    let (pairs, _) = row.as_chunks_mut::<2>();
                    pairs.iter_mut().zip(x).for_each(|(pair, &value)| *pair = [value; 2]);
                }
                _ => {
                    for (out, &index) in row.iter_mut().zip(&last.indices) {
                        *out = x[index];
                    }
                }
            }
            if last.outside.contains(&true) {
                let outside = row.iter_mut().zip(&last.outside).filter(|(_, outside)| **outside);
                outside.for_each(|(out, _)| *out = fill);
            }
        }
    });
}

/// How often each element follows itself, if every one does so equally often.
fn repeat_of(indices: &[usize], size: usize) -> Option<usize> {
    let repeat = indices.len() / size.max(1);
    let is_regular = indices.len() == repeat * size
        && indices.iter().enumerate().all(|(output, &index)| index == output / repeat);
    (repeat > 0 && is_regular).then_some(repeat)
}

/// A float that samples are weighted in.
pub(super) trait Weighted: Real {
    /// out = Σ weight · row.
    fn rows(out: &mut [Self], rows: &[&[Self]], weights: &[f32]);
    /// out[o] = Σ weight · x[index] over the taps of o.
    fn gather(out: &mut [Self], x: &[Self], taps: &Taps);
}

impl Weighted for f32 {
    fn rows(out: &mut [Self], rows: &[&[Self]], weights: &[f32]) {
        weigh_rows(out, rows, weights);
    }

    fn gather(out: &mut [Self], x: &[Self], taps: &Taps) {
        gather_taps(out, x, &taps.indices, &taps.weights, taps.count);
    }
}

impl Weighted for f64 {
    fn rows(out: &mut [Self], rows: &[&[Self]], weights: &[f32]) {
        out.fill(0.0);
        for (row, &weight) in rows.iter().zip(weights) {
            out.iter_mut().zip(*row).for_each(|(out, x)| *out += x * f64::from(weight));
        }
    }

    fn gather(out: &mut [Self], x: &[Self], taps: &Taps) {
        let indices = taps.indices.chunks_exact(taps.count);
        let weights = taps.weights.chunks_exact(taps.count);
        for ((out, indices), weights) in out.iter_mut().zip(indices).zip(weights) {
            *out = indices.iter().zip(weights).map(|(&i, &w)| x[i] * f64::from(w)).sum();
        }
    }
}

/// Samples every axis that changes, from the last to the first, plane by plane: what lies between
/// stays in the cache.
pub(super) fn weighted<T: Weighted>(
    run: &Run,
    x: &Tensor,
    taps: &[Taps],
    extrapolation: f32,
) -> Result<Tensor, OpError> {
    let is_changed: Vec<bool> =
        taps.iter().zip(x.shape()).map(|(taps, &size)| !taps.are_identity(size)).collect();
    let first = is_changed.iter().position(|&changed| changed).unwrap_or(taps.len());
    let shape: Vec<usize> = taps.iter().map(|taps| taps.outside.len()).collect();
    let mut y = run.output(x.dtype(), &shape)?;
    let (plane_in, plane_out): (usize, usize) =
        (x.shape()[first..].iter().product(), shape[first..].iter().product());
    let values = x.slice::<T>();
    let steps: Vec<usize> = (first..taps.len()).rev().filter(|&axis| is_changed[axis]).collect();
    // The largest plane between two steps.
    let (mut sizes, mut between) = (x.shape().to_vec(), 1);
    for &axis in &steps {
        sizes[axis] = shape[axis];
        between = between.max(sizes[first..].iter().product());
    }
    let scratch_shape = [steps.len().saturating_sub(1).min(2), between];
    run.pool.recycle(run.output(x.dtype(), &scratch_shape)?);
    for_rows(y.slice_mut::<T>(), plane_out, |index, planes| {
        let mut scratch = run.pool.buffer(2 * between * size_of::<T>());
        let values_between: &mut [T] = bytemuck::cast_slice_mut(scratch.as_bytes_mut());
        let (mut a, mut b) = values_between.split_at_mut(between);
        for (plane, out) in planes.chunks_exact_mut(plane_out).enumerate() {
            let at = index + plane;
            let source = &values[at * plane_in..(at + 1) * plane_in];
            let mut sizes = x.shape().to_vec();
            let mut held = plane_in;
            for (step, &axis) in steps.iter().enumerate() {
                let outer: usize = sizes[first..axis].iter().product();
                let inner: usize = sizes[axis + 1..].iter().product();
                let before = [outer, sizes[axis], inner];
                sizes[axis] = shape[axis];
                let size = outer * shape[axis] * inner;
                let from: &[T] = if step == 0 { source } else { &a[..held] };
                if step + 1 == steps.len() {
                    sample_axis(out, from, before, &taps[axis]);
                } else {
                    sample_axis(&mut b[..size], from, before, &taps[axis]);
                    (a, b) = (b, a);
                }
                held = size;
            }
            if steps.is_empty() {
                out.copy_from_slice(source);
            }
        }
        run.pool.recycle_buffer(scratch);
    });
    fill_outside(y.slice_mut::<T>(), &shape, taps, T::of(f64::from(extrapolation)));
    Ok(y)
}

/// [outer, size, inner] → [outer, outputs, inner].
fn sample_axis<T: Weighted>(y: &mut [T], x: &[T], [outer, size, inner]: [usize; 3], taps: &Taps) {
    let outputs = taps.outside.len();
    let mut rows: Vec<&[T]> = Vec::with_capacity(taps.count);
    for block in 0..outer {
        let x = &x[block * size * inner..(block + 1) * size * inner];
        let y = &mut y[block * outputs * inner..(block + 1) * outputs * inner];
        if inner == 1 {
            T::gather(y, x, taps);
            continue;
        }
        for (output, y) in y.chunks_exact_mut(inner).enumerate() {
            let at = output * taps.count..(output + 1) * taps.count;
            rows.clear();
            let sources = taps.indices[at.clone()].iter();
            rows.extend(sources.map(|&row| &x[row * inner..(row + 1) * inner]));
            T::rows(y, &rows, &taps.weights[at]);
        }
    }
}

fn fill_outside<T: Copy>(y: &mut [T], shape: &[usize], taps: &[Taps], value: T) {
    if taps.iter().all(|taps| !taps.outside.contains(&true)) {
        return;
    }
    for (index, y) in y.iter_mut().enumerate() {
        let mut rest = index;
        for (taps, &size) in taps.iter().zip(shape).rev() {
            if taps.outside[rest % size] {
                *y = value;
            }
            rest /= size;
        }
    }
}
