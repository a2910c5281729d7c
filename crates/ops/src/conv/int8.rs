//! Convolution of u8 data whose channels are the last axis with 8-bit weights: exact 32-bit sums,
//! turned into u8 levels where they were summed, or kept.
//!
//! sum[n, p, o] = bias[o] + Σ (w[o, c, t] − `w_zero[o]`) · (x[n, p·stride + t·dilation − pad, c] −
//! `x_zero`), by group; padding counts as `x_zero`.

mod packing;

use rayon::prelude::*;

use super::engine::per_thread;
use super::settings::group;
use super::strip::Strip;
use crate::geometry::{Axis, Geometry};
use crate::kernels::int8_convolution::{Int8Isa, Int8Row, Line, Target, int8_isa};
use crate::kernels::int8_depthwise::Int8DepthwiseLine;
use crate::kernels::sums::{Levels, place_in_block};
use crate::{OpError, Pool};
use packing::Packing;

/// Weights of a convolution, packed.
pub(crate) struct Int8Weights {
    isa: Int8Isa,
    pub(crate) geometry: Geometry,
    pub(crate) group: usize,
    /// [outputs, inputs per group, kernel…]
    pub(crate) shape: Vec<usize>,
    lines: Vec<Line>,
    form: Form,
    /// Σ (w − zero) of each output.
    totals: Vec<i32>,
}

enum Form {
    Depthwise,
    /// Weights that no i8 holds are parts that add up, each a set of taps.
    Dense {
        tiles: Vec<Tile>,
        parts: usize,
    },
}

/// Outputs that are computed together.
#[derive(Clone, Copy, Debug)]
struct Tile {
    group: usize,
    /// First output of the tile.
    output: usize,
    width: usize,
    /// Where its lines begin, and how many they are.
    start: usize,
    size: usize,
    /// Where its outputs begin among the padded ones.
    place: usize,
}

/// What a run adds to the sums and scales them by, in the order of the packed weights.
pub(crate) struct Outputs {
    bias: Vec<i32>,
    scales: Vec<f32>,
}

/// What a run convolves.
pub(crate) struct Int8Job<'a> {
    pub(crate) x: &'a [u8],
    pub(crate) x_zero: u8,
    pub(crate) batch: usize,
    /// Spatial axes, two at least.
    pub(crate) axes: &'a [Axis],
    pub(crate) outputs: &'a Outputs,
    pub(crate) levels: Levels,
    pub(crate) pool: &'a Pool,
}

/// What sums become: u8 levels or themselves.
pub(crate) trait Output: Copy + Send {
    /// Whether sums are kept, which tiles of four vectors do not do.
    const IS_SUM: bool;

    fn target<'a>(out: &'a mut [Self], scales: &'a [f32], levels: Levels) -> Target<'a>;
}

impl Output for u8 {
    const IS_SUM: bool = false;

    fn target<'a>(out: &'a mut [u8], scales: &'a [f32], levels: Levels) -> Target<'a> {
        Target::Levels { out, scales, levels }
    }
}

impl Output for i32 {
    const IS_SUM: bool = true;

    fn target<'a>(out: &'a mut [i32], _: &'a [f32], _: Levels) -> Target<'a> {
        Target::Sums(out)
    }
}

/// Bytes of an input strip or of a block of pixels: what stays in the L2 cache with the weights.
const BLOCK_BYTES: usize = 1 << 17;

impl Int8Weights {
    /// Packs weights off their zero points, for sums that become `T`.
    ///
    /// # Errors
    /// Weights that cannot be split into the groups; attributes that no run could accept.
    pub(crate) fn new<T: Output>(
        node: &attar_graph::Node,
        values: &[i16],
        shape: &[usize],
    ) -> Result<Self, OpError> {
        Self::with_isa::<T>(int8_isa(), node, values, shape)
    }

    pub(crate) fn with_isa<T: Output>(
        isa: Int8Isa,
        node: &attar_graph::Node,
        values: &[i16],
        shape: &[usize],
    ) -> Result<Self, OpError> {
        let group = group(node)?;
        if shape.len() < 3 || shape.contains(&0) || !shape[0].is_multiple_of(group) {
            return Err(OpError::value("the weight", shape, format!("outputs in {group} groups")));
        }
        let geometry = Geometry::new(node, &shape[2..])?;
        let each: usize = shape[1..].iter().product();
        let total = |w: &[i16]| w.iter().map(|&w| i32::from(w)).sum();
        let totals = values.chunks_exact(each).map(total).collect();
        let parts = match values.iter().map(|w| w.unsigned_abs()).max() {
            _ if values.iter().all(|&w| i8::try_from(w).is_ok()) => 1,
            Some(..=254) => 2,
            _ => 3,
        };
        let is_depthwise =
            group > 1 && shape[0] == group && shape[1] == 1 && shape.len() <= 4 && parts == 1;
        let packing = Packing { values, shape, group };
        let (lines, form) = if is_depthwise {
            (packing.depthwise(isa.depthwise_layout()), Form::Depthwise)
        } else {
            let is_joined = group == 1 && geometry.dilations.last() == Some(&1);
            let most = isa.tile_vectors_max().min(if T::IS_SUM { 3 } else { 4 });
            packing.dense(most, is_joined, parts)
        };
        let isa = isa.for_weights(&lines);
        Ok(Self { isa, geometry, group, shape: shape.to_vec(), lines, form, totals })
    }

    /// Puts what is added to the sums of each output, and what they are scaled by, in the order of
    /// the packed weights. One scale stands for all.
    pub(crate) fn outputs(&self, bias: Option<&[i32]>, x_zero: u8, scales: &[f32]) -> Outputs {
        let count = self.shape[0];
        let order: Vec<usize> = match &self.form {
            Form::Depthwise => {
                let layout = self.isa.depthwise_layout();
                let blocks = (0..count).step_by(layout.block());
                blocks.flat_map(|first| layout.order().map(move |at| first + at)).collect()
            }
            Form::Dense { tiles, .. } => tiles.iter().flat_map(Tile::order).collect(),
        };
        let bias_of = |o: usize| {
            let zero = i32::from(x_zero).wrapping_mul(self.totals[o]);
            bias.map_or(0, |bias| bias[o]).wrapping_sub(zero)
        };
        let bias = order.iter().map(|&o| if o < count { bias_of(o) } else { 0 }).collect();
        let scale_of = |&o: &usize| if o < count { scales[o % scales.len()] } else { 0.0 };
        Outputs { bias, scales: order.iter().map(scale_of).collect() }
    }

    /// Convolves into `y`, [batch, spatial…, outputs], and hands every finished part of it to
    /// `after`, with the place where it begins.
    pub(crate) fn run<T: Output>(
        &self,
        y: &mut [T],
        job: &Int8Job,
        after: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        if y.is_empty() {
            return;
        }
        let Form::Dense { tiles, parts } = &self.form else {
            return self.depthwise(y, job, after);
        };
        let is_pointwise = self.group == 1
            && job.axes.iter().all(|axis| {
                axis.kernel == 1 && axis.stride == 1 && axis.output == axis.input && axis.pad == 0
            });
        if is_pointwise {
            self.pointwise(y, job, tiles, *parts, after);
        } else {
            self.dense(y, job, tiles, *parts, after);
        }
    }

    fn pointwise<T: Output>(
        &self,
        y: &mut [T],
        job: &Int8Job,
        tiles: &[Tile],
        parts: usize,
        after: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        let (outputs, inputs) = (self.shape[0], self.shape[1]);
        let pixels = y.len() / outputs;
        let block = (BLOCK_BYTES / (inputs + outputs)).clamp(24, 4096);
        let block = block.min(per_thread(pixels, pixels * inputs * outputs / 4)).max(1);
        let work = |(index, y): (usize, &mut [T])| {
            let first = index * block;
            let pixels = y.len() / outputs;
            for tile in tiles {
                let row = Int8Row {
                    x: job.x,
                    first: first * inputs,
                    step: inputs,
                    taps: &[0; 3][..parts],
                    depth: inputs,
                    pixels,
                    out_step: outputs,
                    ..tile.row(self, job)
                };
                let scales = &job.outputs.scales[tile.place..];
                let target = T::target(&mut y[tile.output..], scales, job.levels);
                self.isa.dense_row(target, &row);
            }
            after(first * outputs, y);
        };
        if block < pixels && crate::threads::count() > 1 {
            y.par_chunks_mut(block * outputs).enumerate().for_each(work);
        } else {
            y.chunks_mut(block * outputs).enumerate().for_each(work);
        }
    }

    /// Cuts the output into blocks of `rows` along the first spatial axis, and hands each to
    /// `work` with its image and its first index.
    fn for_blocks<T: Output>(
        &self,
        y: &mut [T],
        job: &Int8Job,
        rows: usize,
        after: &(dyn Fn(usize, &mut [T]) + Sync),
        work: impl Fn(usize, usize, &mut [T]) + Sync,
    ) {
        let row: usize =
            job.axes[1..].iter().map(|axis| axis.output).product::<usize>() * self.shape[0];
        let image = row * job.axes[0].output;
        let each = job.axes[0].output.div_ceil(rows);
        let block = |n: usize, index: usize, y: &mut [T]| {
            work(n, index * rows, y);
            after(n * image + index * rows * row, y);
        };
        if each * job.batch > 1 && crate::threads::count() > 1 {
            y.par_chunks_mut(image).enumerate().for_each(|(n, y)| {
                let parts = y.par_chunks_mut(rows * row).enumerate();
                parts.for_each(|(index, y)| block(n, index, y));
            });
        } else {
            for (n, y) in y.chunks_mut(image).enumerate() {
                let parts = y.chunks_mut(rows * row).enumerate();
                parts.for_each(|(index, y)| block(n, index, y));
            }
        }
    }

    /// Rows of the first spatial axis to compute at once.
    fn block_rows(&self, job: &Int8Job, strip_row: usize) -> usize {
        let first = &job.axes[0];
        let by_cache = (BLOCK_BYTES / (strip_row * first.stride).max(1)).clamp(1, first.output);
        let rows = first.output * job.batch;
        let taps: usize = self.shape[1..].iter().product();
        let work = strip_row.saturating_mul(rows).saturating_mul(taps);
        by_cache.min(per_thread(rows, work / 4)).max(1)
    }

    fn dense<T: Output>(
        &self,
        y: &mut [T],
        job: &Int8Job,
        tiles: &[Tile],
        parts: usize,
        after: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        let strip = Strip::new(job.axes, self.shape[1] * self.group);
        let (taps, depth) = strip.taps(job.axes, self.group);
        let taps = taps.repeat(parts);
        let rows = self.block_rows(job, strip.pitches[0]);
        let line: usize = job.axes[1..].iter().map(|axis| axis.output).product();
        self.for_blocks(y, job, rows, after, |n, first, y| {
            let image = strip.image(job.x, job.axes, n);
            let window = Window { strip: &strip, taps: &taps, depth };
            if !strip.is_copied {
                let start = first * job.axes[0].stride * strip.pitches[0];
                return self.dense_block(y, image, start, job, &window, tiles);
            }
            let count = y.len() / (line * self.shape[0]);
            let needed = Strip::rows(&job.axes[0], count) * strip.pitches[0];
            let mut scratch = job.pool.buffer(needed);
            let values = scratch.as_bytes_mut();
            strip.fill(values, image, job.axes, first, job.x_zero);
            self.dense_block(y, values, 0, job, &window, tiles);
            job.pool.recycle_buffer(scratch);
        });
    }

    /// One block of the first spatial axis, from a strip that begins at `start` of `x`.
    fn dense_block<T: Output>(
        &self,
        y: &mut [T],
        x: &[u8],
        start: usize,
        job: &Int8Job,
        window: &Window,
        tiles: &[Tile],
    ) {
        let (outputs, inputs) = (self.shape[0], self.shape[1]);
        let (strip, last) = (window.strip, job.axes.len() - 1);
        let width = job.axes[last].output;
        let middle = &job.axes[1..last];
        for tile in tiles {
            for line in 0..y.len() / (width * outputs) {
                let mut rest = line;
                let mut place = start + tile.group * inputs;
                for (index, axis) in middle.iter().enumerate().rev() {
                    place += rest % axis.output * axis.stride * strip.pitches[index + 1];
                    rest /= axis.output;
                }
                place += rest * job.axes[0].stride * strip.pitches[0];
                let row = Int8Row {
                    x,
                    first: place,
                    step: job.axes[last].stride * strip.channels,
                    taps: window.taps,
                    depth: window.depth,
                    pixels: width,
                    out_step: outputs,
                    ..tile.row(self, job)
                };
                let out = &mut y[line * width * outputs + tile.output..];
                let scales = &job.outputs.scales[tile.place..];
                self.isa.dense_row(T::target(out, scales, job.levels), &row);
            }
        }
    }

    fn depthwise<T: Output>(
        &self,
        y: &mut [T],
        job: &Int8Job,
        after: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        let channels = self.shape[0];
        let [tall, wide] = [job.axes[0], job.axes[1]];
        let rows = self.block_rows(job, wide.input * channels);
        let size = tall.input * wide.input * channels;
        self.for_blocks(y, job, rows, after, |n, first, y| {
            let image = &job.x[n * size..(n + 1) * size];
            let mut lines = vec![None; tall.kernel];
            let mut scratch = None;
            for (index, y) in y.chunks_exact_mut(wide.output * channels).enumerate() {
                for (ky, line) in lines.iter_mut().enumerate() {
                    let source = tall.source(first + index, ky);
                    *line = source.map(|source| source * wide.input * channels);
                }
                let line = Int8DepthwiseLine {
                    x: image,
                    lines: &lines,
                    axis: wide,
                    channels,
                    pad: job.x_zero,
                    layout: self.isa.depthwise_layout(),
                    w: &self.lines,
                    bias: &job.outputs.bias,
                };
                let scratch = scratch.get_or_insert_with(|| job.pool.buffer(line.scratch_bytes()));
                let target = T::target(y, &job.outputs.scales, job.levels);
                self.isa.depthwise_line(target, scratch.as_bytes_mut(), &line);
            }
            scratch.into_iter().for_each(|buffer| job.pool.recycle_buffer(buffer));
        });
    }
}

/// Where the taps of a dense convolution lie.
struct Window<'a> {
    strip: &'a Strip,
    taps: &'a [usize],
    depth: usize,
}

impl Tile {
    fn vectors(&self) -> usize {
        self.width.div_ceil(16)
    }

    /// The output at each place of the tile; `usize::MAX` where there is none.
    fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let (tile, vectors) = (*self, self.vectors());
        (0..vectors * 16).map(move |at| {
            let o = if vectors == 4 { place_in_block(at / 16, at % 16) } else { at };
            if o < tile.width { tile.output + o } else { usize::MAX }
        })
    }

    /// A row of which only the weights are known.
    fn row<'a>(&self, weights: &'a Int8Weights, job: &'a Int8Job) -> Int8Row<'a> {
        Int8Row {
            x: job.x,
            first: 0,
            step: 0,
            taps: &[],
            depth: 0,
            w: &weights.lines[self.start..self.start + self.size],
            bias: &job.outputs.bias[self.place..],
            pixels: 0,
            width: self.width,
            out_step: 0,
        }
    }
}
