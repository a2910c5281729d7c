//! Gradients of a convolution whose channels are the last axis:
//!
//! dw[o, c, t] = Σ dy[n, p, o] · x[n, p·stride + t·dilation − pad, c],
//! dx[n, q, c] = Σ dy[n, p, o] · w[o, c, t] over the pixels p whose tap t lies on q, by group.
//!
//! Sums are split at places that depend on shapes alone, so threads change nothing.

use attar_graph::Node;
use attar_tensor::DType;
use rayon::prelude::*;

use super::engine::{Engine, Job, for_runs};
use super::settings::Settings;
use super::transposed::Transposed;
use super::wide::source;
use crate::geometry::Axis;
use crate::kernels::channels_last::{Activation, DepthwiseRow, Finish, depthwise_row};
use crate::kernels::elementwise::add_assign;
use crate::kernels::outer::{DepthwiseSums, Slab, add_depthwise, add_outer};
use crate::kernels::{for_rows, normalize};
use crate::{OpError, Pool};

/// A convolution as its gradients see it.
pub(crate) struct Window<'a> {
    pub(crate) batch: usize,
    axes: Vec<Axis>,
    /// [outputs, inputs per group, kernel…]
    weight: &'a [usize],
    group: usize,
    pool: &'a Pool,
}

/// Parts that a long sum is cut into, each for one thread.
const PARTS: usize = 16;

/// Products whose sums are cut into parts: more would take too much memory.
const PARTED_MAX: usize = 1 << 15;

/// Values of patches that are written out at a time.
const PATCHES: usize = 1 << 20;

impl<'a> Window<'a> {
    /// # Errors
    /// A weight without values, or whose outputs cannot be split into groups.
    pub(crate) fn new(
        batch: usize,
        mut axes: Vec<Axis>,
        weight: &'a [usize],
        group: usize,
        pool: &'a Pool,
    ) -> Result<Self, OpError> {
        if weight.contains(&0) || !weight[0].is_multiple_of(group) {
            return Err(OpError::value("the weight", weight, format!("outputs in {group} groups")));
        }
        while axes.len() > 1 && axes.last() == Some(&Axis::UNIT) {
            axes.pop();
        }
        if axes.len() == 1 {
            axes.insert(0, Axis::UNIT);
        }
        Ok(Self { batch, axes, weight, group, pool })
    }

    fn outputs(&self) -> usize {
        self.weight[0]
    }

    fn inputs(&self) -> usize {
        self.weight[1] * self.group
    }

    fn taps(&self) -> usize {
        self.weight[2..].iter().product()
    }

    /// Pixels of an output image.
    fn pixels(&self) -> usize {
        self.axes.iter().map(|axis| axis.output).product()
    }

    /// Pixels of an input image.
    fn places(&self) -> usize {
        self.axes.iter().map(|axis| axis.input).product()
    }

    fn is_depthwise(&self) -> bool {
        let is_single = self.weight[1] == 1 && self.weight[0] == self.group && self.group > 1;
        is_single && self.axes.len() == 2
    }

    fn is_pointwise(&self) -> bool {
        let is_point =
            |axis: &Axis| axis.kernel == 1 && axis.stride == 1 && axis.output == axis.input;
        self.axes.iter().all(|axis| is_point(axis) && axis.pad == 0)
    }

    /// dw of the weight's shape, from x [batch, places, inputs] and dy [batch, pixels, outputs].
    pub(crate) fn weight_gradient(&self, dw: &mut [f32], x: &[f32], dy: &[f32]) {
        dw.fill(0.0);
        if dy.is_empty() || x.is_empty() {
            return;
        }
        if self.is_depthwise() {
            return self.depthwise_weights(dw, x, dy);
        }
        let (outputs, inputs) = (self.outputs(), self.inputs());
        let (rows, width) = (outputs / self.group, self.weight[1] * self.taps());
        if self.is_pointwise() {
            let count = self.batch * self.pixels();
            for (g, dw) in dw.chunks_exact_mut(rows * width).enumerate() {
                let a = Slab { data: &dy[g * rows..], step: outputs, width: rows };
                let b = Slab { data: &x[g * width..], step: inputs, width };
                self.add_products(dw, a, b, count);
            }
            return;
        }
        let mut by_tap = self.pool.tensor(DType::F32, &[outputs, width]);
        by_tap.slice_mut::<f32>().fill(0.0);
        for (g, dw) in by_tap.slice_mut::<f32>().chunks_exact_mut(rows * width).enumerate() {
            self.add_patches(dw, x, dy, g);
        }
        self.untap(dw, by_tap.slice());
        self.pool.recycle(by_tap);
    }

    /// [outputs, taps, inputs per group] → [outputs, inputs per group, taps].
    fn untap(&self, dw: &mut [f32], by_tap: &[f32]) {
        let (inputs, taps) = (self.weight[1], self.taps());
        for_rows(dw, inputs * taps, |first, rows| {
            let by_tap = &by_tap[first * inputs * taps..];
            let outputs = rows.chunks_exact_mut(inputs * taps);
            for (dw, by_tap) in outputs.zip(by_tap.chunks_exact(inputs * taps)) {
                for (tap, by_tap) in by_tap.chunks_exact(inputs).enumerate() {
                    dw[tap..].iter_mut().step_by(taps).zip(by_tap).for_each(|(dw, &v)| *dw = v);
                }
            }
        });
    }

    /// y += aᵀ·b over `rows` rows.
    fn add_products(&self, y: &mut [f32], a: Slab, b: Slab, rows: usize) {
        if y.len() <= PARTED_MAX && rows >= PARTS * 256 {
            let each = rows.div_ceil(PARTS);
            let mut parts = self.pool.tensor(DType::F32, &[PARTS, y.len()]);
            let values = parts.slice_mut::<f32>();
            values.fill(0.0);
            values.par_chunks_exact_mut(y.len()).enumerate().for_each(|(index, part)| {
                let first = (index * each).min(rows);
                let count = (rows - first).min(each);
                if count > 0 {
                    add_outer(part, a.below(first), b.below(first), count);
                }
            });
            for_rows(y, 1, |first, y| {
                for part in parts.slice::<f32>().chunks_exact(a.width * b.width) {
                    add_assign(y, &part[first..first + y.len()]);
                }
            });
            self.pool.recycle(parts);
            return;
        }
        let threads = crate::threads::count();
        let height = if threads == 1 { a.width } else { a.width.div_ceil(threads * 2) };
        y.par_chunks_mut(height * b.width).enumerate().for_each(|(index, y)| {
            let data = &a.data[index * height..];
            add_outer(y, Slab { data, step: a.step, width: y.len() / b.width }, b, rows);
        });
    }

    /// Adds one group's products of dy with patches of x, written out block by block.
    fn add_patches(&self, dw: &mut [f32], x: &[f32], dy: &[f32], g: usize) {
        let (outputs, inputs, each) = (self.outputs(), self.inputs(), self.weight[1]);
        let (pixels, places, taps) = (self.pixels(), self.places(), self.taps());
        let (rows, width) = (self.batch * pixels, each * taps);
        let sources: Vec<Option<usize>> =
            (0..pixels * taps).map(|i| source(&self.axes, i / taps, i % taps)).collect();
        let block = (PATCHES / width).clamp(64, rows.max(64)).min(rows);
        let mut patches = self.pool.tensor(DType::F32, &[block, width]);
        for first in (0..rows).step_by(block) {
            let count = (rows - first).min(block);
            let values = &mut patches.slice_mut::<f32>()[..count * width];
            for_rows(values, width, |start, patches| {
                for (index, patch) in patches.chunks_exact_mut(width).enumerate() {
                    let (n, p) =
                        ((first + start + index) / pixels, (first + start + index) % pixels);
                    let sources = &sources[p * taps..(p + 1) * taps];
                    for (values, source) in patch.chunks_exact_mut(each).zip(sources) {
                        match source {
                            Some(at) => {
                                let at = (n * places + at) * inputs + g * each;
                                values.copy_from_slice(&x[at..at + each]);
                            }
                            None => values.fill(0.0),
                        }
                    }
                }
            });
            let per_group = outputs / self.group;
            let data = &dy[first * outputs + g * per_group..];
            let a = Slab { data, step: outputs, width: per_group };
            let b = Slab { data: patches.slice(), step: width, width };
            self.add_products(dw, a, b, count);
        }
        self.pool.recycle(patches);
    }

    fn depthwise_weights(&self, dw: &mut [f32], x: &[f32], dy: &[f32]) {
        let [tall, wide] = [self.axes[0], self.axes[1]];
        let (channels, taps) = (self.outputs(), self.taps());
        let line = wide.output * channels;
        let part_count = self.batch.min(PARTS);
        let each = self.batch.div_ceil(part_count);
        let mut parts = self.pool.tensor(DType::F32, &[part_count, taps * channels]);
        let values = parts.slice_mut::<f32>();
        values.fill(0.0);
        values.par_chunks_exact_mut(taps * channels).enumerate().for_each(|(part, sums)| {
            for n in (part * each).min(self.batch)..((part + 1) * each).min(self.batch) {
                let size = self.places() * channels;
                let image = &x[n * size..(n + 1) * size];
                for out_y in 0..tall.output {
                    let dy = &dy[(n * tall.output + out_y) * line..][..line];
                    for_runs([tall, wide], channels, out_y, |out_x, pixels, taps| {
                        let row = DepthwiseSums {
                            x: image,
                            first: 0,
                            step: wide.stride * channels,
                            taps,
                            dy: &dy[out_x * channels..],
                            pixels,
                            channels,
                        };
                        add_depthwise(sums, &row);
                    });
                }
            }
        });
        let (sum, others) = parts.slice_mut::<f32>().split_at_mut(taps * channels);
        others.chunks_exact(taps * channels).for_each(|part| add_assign(sum, part));
        for (tap, sums) in sum.chunks_exact(channels).enumerate() {
            dw[tap..].iter_mut().step_by(taps).zip(sums).for_each(|(dw, &sum)| *dw = sum);
        }
        self.pool.recycle(parts);
    }

    /// dx [batch, places, inputs] from dy [batch, pixels, outputs].
    ///
    /// # Errors
    /// Weights that cannot be split into groups.
    pub(crate) fn data_gradient(
        &self,
        dx: &mut [f32],
        w: &[f32],
        dy: &[f32],
    ) -> Result<(), OpError> {
        let turns = |axis: &Axis| axis.stride == 1 && axis.pad <= (axis.kernel - 1) * axis.dilation;
        if self.axes.iter().all(turns) {
            return self.turned(dx, w, dy);
        }
        if self.is_depthwise() {
            self.depthwise_data(dx, w, dy);
            return Ok(());
        }
        let shape: Vec<usize> = if self.weight.len() < 3 { vec![] } else { self.weight.into() };
        let transposed = Transposed::new(w, &shape, self.group)?;
        transposed.run(dx, dy, &self.axes, None, self.pool);
        Ok(())
    }

    /// With stride 1, dx is the convolution of dy with the weights turned around.
    fn turned(&self, dx: &mut [f32], w: &[f32], dy: &[f32]) -> Result<(), OpError> {
        let (inputs, taps, group) = (self.weight[1], self.taps(), self.group);
        let outputs = self.outputs() / group;
        let mut turned = vec![0.0; w.len()];
        for (row, w) in w.chunks_exact(inputs * taps).enumerate() {
            let (g, o) = (row / outputs, row % outputs);
            for (c, w) in w.chunks_exact(taps).enumerate() {
                let to = &mut turned[((g * inputs + c) * outputs + o) * taps..][..taps];
                to.iter_mut().rev().zip(w).for_each(|(to, &w)| *to = w);
            }
        }
        let mut shape = self.weight.to_vec();
        shape[..2].copy_from_slice(&[self.inputs(), outputs]);
        let plain = Node::new("Conv", "", &[], &[]).with_attribute("group", group as i64);
        let engine = Engine::new(&turned, &shape, Settings::new(&plain, &shape[2..])?)?;
        let turn = |axis: &Axis| Axis {
            input: axis.output,
            output: axis.input,
            pad: (axis.kernel - 1) * axis.dilation - axis.pad,
            pad_end: 0,
            ..*axis
        };
        let axes = self.axes.iter().map(turn).collect();
        let (batch, pool) = (self.batch, self.pool);
        engine.run(dx, &Job { x: dy, batch, axes, bias: None, addend: None, pool });
        Ok(())
    }

    /// Every `stride`-th place along a line gets the same taps: they are one run.
    fn depthwise_data(&self, dx: &mut [f32], w: &[f32], dy: &[f32]) {
        let [tall, wide] = [self.axes[0], self.axes[1]];
        let (channels, taps) = (self.outputs(), self.taps());
        let at = |i: usize| w[i % channels * taps + i / channels];
        let by_tap: Vec<f32> = (0..taps * channels).map(at).collect();
        let bias = vec![0.0; channels];
        let line = wide.input * channels;
        let size = self.pixels() * channels;
        for_rows(dx, line, |first, lines| {
            let mut from = Vec::with_capacity(taps);
            for (index, out) in lines.chunks_exact_mut(line).enumerate() {
                let (n, y) = ((first + index) / tall.input, (first + index) % tall.input);
                let image = &dy[n * size..(n + 1) * size];
                for start in 0..wide.stride.min(wide.input) {
                    self.runs_back(y, start, |x, pixels, taps: &[(usize, usize, usize)]| {
                        from.clear();
                        from.extend(taps.iter().map(|&(row, column, tap)| {
                            ((row * wide.output + column) * channels, tap * channels)
                        }));
                        let row = DepthwiseRow {
                            x: image,
                            first: 0,
                            step: channels,
                            taps: &from,
                            w: &by_tap,
                            bias: &bias,
                            addend: None,
                            finish: PLAIN,
                            pixels,
                            channels,
                            out_step: wide.stride * channels,
                        };
                        depthwise_row(&mut out[x * channels..], &row);
                    });
                }
            }
        });
    }

    /// Hands out the places `start`, `start` + stride, … of line `y`, together where all taps lie
    /// on the output: the first place, how many, and row, column and number of each tap.
    fn runs_back(
        &self,
        y: usize,
        start: usize,
        mut visit: impl FnMut(usize, usize, &[(usize, usize, usize)]),
    ) {
        let [tall, wide] = [self.axes[0], self.axes[1]];
        let mut rows = Vec::new();
        for ky in 0..tall.kernel {
            let Some(from) = (y + tall.pad).checked_sub(ky * tall.dilation) else { continue };
            if from.is_multiple_of(tall.stride) && from / tall.stride < tall.output {
                rows.push((from / tall.stride, ky));
            }
        }
        // Column of a tap under place `start`, before or behind the line too.
        let stride = wide.stride as isize;
        let mut columns = Vec::new();
        for kx in 0..wide.kernel {
            let from = (start + wide.pad) as isize - (kx * wide.dilation) as isize;
            if from.rem_euclid(stride) == 0 {
                columns.push((from.div_euclid(stride), kx));
            }
        }
        let count = (wide.input - start).div_ceil(wide.stride) as isize;
        let output = wide.output as isize;
        let low = columns.iter().map(|&(column, _)| -column).max().unwrap_or(0).clamp(0, count);
        let high = columns.iter().map(|&(column, _)| output - column).min().unwrap_or(count);
        let high = high.clamp(low, count);
        let mut taps = Vec::with_capacity(rows.len() * columns.len());
        let edges = (0..low).chain(high..count).map(|at| (at, 1));
        for (at, pixels) in edges.chain((high > low).then_some((low, high - low))) {
            taps.clear();
            for &(row, ky) in &rows {
                for &(column, kx) in &columns {
                    if (0..output).contains(&(column + at)) {
                        taps.push((row, (column + at) as usize, ky * wide.kernel + kx));
                    }
                }
            }
            visit(start + at as usize * wide.stride, pixels as usize, &taps);
        }
    }
}

const PLAIN: Finish = Finish { activation: Activation::None, scale: 1.0, shift: 0.0 };

/// Rows that are added up before their sum joins the whole.
const SUMMED: usize = 256;

/// The sum of rows of `width` values.
pub(crate) fn column_sums(sums: &mut [f32], rows: &[f32], pool: &Pool) {
    let width = sums.len();
    sums.fill(0.0);
    if rows.is_empty() {
        return;
    }
    let size = SUMMED * width;
    let mut parts = pool.tensor(DType::F32, &[rows.len().div_ceil(size), width]);
    let values = parts.slice_mut::<f32>();
    values.fill(0.0);
    let work = |(part, rows): (&mut [f32], &[f32])| normalize::add_rows(part, rows);
    values.par_chunks_exact_mut(width).zip(rows.par_chunks(size)).for_each(work);
    normalize::add_rows(sums, parts.slice());
    pool.recycle(parts);
}
