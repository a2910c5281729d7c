//! Convolution of f32 data whose channels are the last axis; weights are packed once.
//!
//! y[n, p, o] = finish(bias[o] + Σ w[o, c, t] · x[n, p·stride + t·dilation − pad, c]), by group.
//! Every output is summed over taps and channels in one order, whatever the batch and the number
//! of threads.

use rayon::prelude::*;

use super::settings::Settings;
use super::strip::Strip;
use crate::geometry::Axis;
use crate::kernels::channels_last::{self, DenseRow, DepthwiseRow, Finish};
use crate::{OpError, Pool};

/// A convolution ready to run on inputs of any size.
pub(crate) struct Engine {
    pub(crate) settings: Settings,
    /// [outputs, inputs per group, kernel…]
    pub(crate) shape: Vec<usize>,
    weights: Weights,
}

enum Weights {
    /// [tap, channel]
    Depthwise(Vec<f32>),
    /// Per group and tile of outputs: [tap, input, output of the tile].
    Dense { packed: Vec<f32>, tiles: Vec<Tile> },
}

/// Outputs that are computed together.
#[derive(Clone, Copy)]
struct Tile {
    group: usize,
    /// First output of the tile.
    output: usize,
    width: usize,
    /// Where its weights begin, and how many they are.
    start: usize,
    size: usize,
}

/// What a run convolves.
pub(crate) struct Job<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) batch: usize,
    /// Spatial axes, two at least.
    pub(crate) axes: Vec<Axis>,
    pub(crate) bias: Option<&'a [f32]>,
    /// Added before the activation; laid out like the output.
    pub(crate) addend: Option<&'a [f32]>,
    pub(crate) pool: &'a Pool,
}

/// Values of an input strip or of a block of pixels: what stays in the L2 cache with the weights.
const BLOCK_VALUES: usize = 1 << 16;

impl Engine {
    /// # Errors
    /// Weights that cannot be split into the groups.
    pub(crate) fn new(
        values: &[f32],
        shape: &[usize],
        settings: Settings,
    ) -> Result<Self, OpError> {
        let (outputs, inputs, group) = (shape[0], shape[1], settings.group);
        if inputs != 1 || outputs != group || group == 1 || shape.len() > 4 {
            return Self::new_dense(values, shape, settings);
        }
        let taps: usize = shape[2..].iter().product();
        let at = |i: usize| values[i % outputs * taps + i / outputs];
        let weights = Weights::Depthwise((0..taps * outputs).map(at).collect());
        Ok(Self { settings, shape: shape.to_vec(), weights })
    }

    /// The general form, for depthwise weights too.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub(crate) fn new_dense(
        values: &[f32],
        shape: &[usize],
        settings: Settings,
    ) -> Result<Self, OpError> {
        let group = settings.group;
        if !shape[0].is_multiple_of(group) || shape.contains(&0) {
            return Err(OpError::value("the weight", shape, format!("outputs in {group} groups")));
        }
        let taps: usize = shape[2..].iter().product();
        let weights = pack(values, shape[0], shape[1], taps, group);
        Ok(Self { settings, shape: shape.to_vec(), weights })
    }

    /// Convolves into `y`, [batch, spatial…, outputs].
    pub(crate) fn run(&self, y: &mut [f32], job: &Job) {
        if y.is_empty() {
            return;
        }
        // A tile reads biases of whole vectors.
        let mut bias = vec![0.0; self.shape[0] + 64];
        if let Some(values) = job.bias {
            bias[..values.len()].copy_from_slice(values);
        }
        match &self.weights {
            Weights::Depthwise(w) => self.depthwise(y, job, w, &bias),
            Weights::Dense { packed, tiles } => {
                let is_pointwise = self.settings.group == 1
                    && job.axes.iter().all(|axis| {
                        axis.kernel == 1 && axis.stride == 1 && axis.output == axis.input
                    });
                if is_pointwise {
                    self.pointwise(y, job, packed, tiles, &bias);
                } else {
                    self.dense(y, job, packed, tiles, &bias);
                }
            }
        }
    }

    fn finish(&self) -> Finish {
        self.settings.activation.finish
    }

    fn finish_block(&self, block: &mut [f32]) {
        if let Some(function) = self.settings.activation.function {
            function(block);
        }
    }

    /// Every pixel is a row of a matrix product.
    fn pointwise(&self, y: &mut [f32], job: &Job, packed: &[f32], tiles: &[Tile], bias: &[f32]) {
        let (outputs, inputs) = (self.shape[0], self.shape[1]);
        let pixels = y.len() / outputs;
        let block = (BLOCK_VALUES / inputs).clamp(24, 4096);
        let block = block.min(per_thread(pixels, pixels * inputs * outputs)).max(1);
        let work = |(index, y): (usize, &mut [f32])| {
            let first = index * block;
            for tile in tiles {
                let row = DenseRow {
                    x: job.x,
                    first: first * inputs,
                    step: inputs,
                    taps: &[0],
                    depth: inputs,
                    w: &packed[tile.start..tile.start + tile.size],
                    bias: &bias[tile.output..],
                    addend: job.addend.map(|addend| &addend[first * outputs + tile.output..]),
                    finish: self.finish(),
                    pixels: y.len() / outputs,
                    width: tile.width,
                    out_step: outputs,
                };
                channels_last::dense_row(&mut y[tile.output..], &row);
            }
            self.finish_block(y);
        };
        if block < pixels && crate::threads::count() > 1 {
            y.par_chunks_mut(block * outputs).enumerate().for_each(work);
        } else {
            y.chunks_mut(block * outputs).enumerate().for_each(work);
        }
    }

    /// Cuts the output into blocks along the first spatial axis, and hands each to `work` with
    /// its image, its first index and how many there are.
    fn for_blocks(
        &self,
        y: &mut [f32],
        job: &Job,
        rows: usize,
        work: impl Fn(usize, usize, usize, &mut [f32]) + Sync,
    ) {
        let row: usize =
            job.axes[1..].iter().map(|axis| axis.output).product::<usize>() * self.shape[0];
        let image = row * job.axes[0].output;
        let mut blocks = Vec::new();
        for (n, y) in y.chunks_exact_mut(image).enumerate() {
            let parts = y.chunks_mut(rows * row).enumerate();
            blocks.extend(parts.map(|(index, part)| (n, index * rows, part)));
        }
        let run = |(n, first, y): (usize, usize, &mut [f32])| {
            work(n, first, y.len() / row, y);
            self.finish_block(y);
        };
        if blocks.len() > 1 && crate::threads::count() > 1 {
            blocks.into_par_iter().for_each(run);
        } else {
            blocks.into_iter().for_each(run);
        }
    }

    /// Rows of the first spatial axis to compute at once.
    fn block_rows(&self, job: &Job, strip_row: usize) -> usize {
        let first = &job.axes[0];
        let by_cache = (BLOCK_VALUES / (strip_row * first.stride).max(1)).clamp(1, first.output);
        let rows = first.output * job.batch;
        let taps: usize = self.shape[1..].iter().product();
        let work = strip_row.saturating_mul(rows).saturating_mul(taps);
        by_cache.min(per_thread(rows, work)).max(1)
    }

    fn dense(&self, y: &mut [f32], job: &Job, packed: &[f32], tiles: &[Tile], bias: &[f32]) {
        let strip = Strip::new(&job.axes, self.shape[1] * self.settings.group);
        let taps = strip.taps(&job.axes, self.settings.group);
        let rows = self.block_rows(job, strip.pitches[0]);
        self.for_blocks(y, job, rows, |n, first, count, y| {
            let image = strip.image(job.x, &job.axes, n);
            if strip.is_copied {
                let needed = Strip::rows(&job.axes[0], count);
                let mut scratch = job.pool.buffer(needed * strip.pitches[0] * 4);
                let values: &mut [f32] = bytemuck::cast_slice_mut(scratch.as_bytes_mut());
                strip.fill(values, image, &job.axes, first, 0.0);
                self.dense_block(
                    y,
                    values,
                    0,
                    [n, first, count],
                    (job, &strip, &taps),
                    packed,
                    tiles,
                    bias,
                );
                job.pool.recycle_buffer(scratch);
            } else {
                let start = first * job.axes[0].stride * strip.pitches[0];
                self.dense_block(
                    y,
                    image,
                    start,
                    [n, first, count],
                    (job, &strip, &taps),
                    packed,
                    tiles,
                    bias,
                );
            }
        });
    }

    /// One block of the first spatial axis, from a strip that begins at `start` of `x`.
    #[allow(clippy::too_many_arguments)]
    fn dense_block(
        &self,
        y: &mut [f32],
        x: &[f32],
        start: usize,
        [n, first, count]: [usize; 3],
        (job, strip, (taps, depth)): (&Job, &Strip, &(Vec<usize>, usize)),
        packed: &[f32],
        tiles: &[Tile],
        bias: &[f32],
    ) {
        let (outputs, inputs) = (self.shape[0], self.shape[1]);
        let last = job.axes.len() - 1;
        let width = job.axes[last].output;
        let middle = &job.axes[1..last];
        let lines_each: usize = middle.iter().map(|axis| axis.output).product();
        let lines_before = (n * job.axes[0].output + first) * lines_each;
        for tile in tiles {
            for line in 0..count * lines_each {
                let mut rest = line;
                let mut place = start + tile.group * inputs;
                for (index, axis) in middle.iter().enumerate().rev() {
                    place += rest % axis.output * axis.stride * strip.pitches[index + 1];
                    rest /= axis.output;
                }
                place += rest * job.axes[0].stride * strip.pitches[0];
                let out = line * width * outputs + tile.output;
                let row = DenseRow {
                    x,
                    first: place,
                    step: job.axes[last].stride * strip.channels,
                    taps,
                    depth: *depth,
                    w: &packed[tile.start..tile.start + tile.size],
                    bias: &bias[tile.output..],
                    addend: (job.addend)
                        .map(|addend| &addend[lines_before * width * outputs + out..]),
                    finish: self.finish(),
                    pixels: width,
                    width: tile.width,
                    out_step: outputs,
                };
                channels_last::dense_row(&mut y[out..], &row);
            }
        }
    }

    fn depthwise(&self, y: &mut [f32], job: &Job, w: &[f32], bias: &[f32]) {
        let channels = self.shape[0];
        let [tall, wide] = [job.axes[0], job.axes[1]];
        let rows = self.block_rows(job, wide.input * channels);
        self.for_blocks(y, job, rows, |n, first, count, y| {
            let image = &job.x[n * tall.input * wide.input * channels..];
            let image = &image[..tall.input * wide.input * channels];
            for index in 0..count {
                let out_y = first + index;
                let line = &mut y[index * wide.output * channels..][..wide.output * channels];
                let addend_at = (n * tall.output + out_y) * wide.output * channels;
                for_runs([tall, wide], channels, out_y, |out_x, pixels, taps| {
                    let out = out_x * channels;
                    let row = DepthwiseRow {
                        x: image,
                        first: 0,
                        step: wide.stride * channels,
                        taps,
                        w,
                        bias,
                        addend: job.addend.map(|addend| &addend[addend_at + out..]),
                        finish: self.finish(),
                        pixels,
                        channels,
                        out_step: channels,
                    };
                    channels_last::depthwise_row(&mut line[out..], &row);
                });
            }
        });
    }
}

/// Hands out the pixels of output line `out_y` of a depthwise convolution: those whose window
/// crosses a side one by one, the others together. With them goes, for each tap that lies on the
/// image, its place under the first pixel and where its weights begin.
pub(super) fn for_runs(
    [tall, wide]: [Axis; 2],
    channels: usize,
    out_y: usize,
    mut visit: impl FnMut(usize, usize, &[(usize, usize)]),
) {
    // Outputs whose window lies inside along the width: from..to.
    let reach = (wide.kernel - 1) * wide.dilation;
    let from = wide.pad.div_ceil(wide.stride).min(wide.output);
    let to = (wide.input + wide.pad).checked_sub(reach + 1);
    let to = to.map_or(0, |to| to / wide.stride + 1).clamp(from, wide.output);
    let edges = (0..from).chain(to..wide.output).map(|at| (at, 1));
    let inside = (to > from).then_some((from, to - from));
    let mut taps = Vec::with_capacity(tall.kernel * wide.kernel);
    for (out_x, pixels) in edges.chain(inside) {
        taps.clear();
        for ky in 0..tall.kernel {
            let Some(y) = tall.source(out_y, ky) else { continue };
            for kx in 0..wide.kernel {
                let Some(x) = wide.source(out_x, kx) else { continue };
                let weight = (ky * wide.kernel + kx) * channels;
                taps.push(((y * wide.input + x) * channels, weight));
            }
        }
        visit(out_x, pixels, &taps);
    }
}

/// Rows of a block such that every thread gets several, if there is work for more than one.
pub(super) fn per_thread(rows: usize, work: usize) -> usize {
    let threads = crate::threads::count();
    if threads == 1 || work < 1 << 17 { rows } else { rows.div_ceil(threads * 4) }
}

/// Lays weights [outputs, inputs per group, taps] out for the kernel.
fn pack(values: &[f32], outputs: usize, inputs: usize, taps: usize, group: usize) -> Weights {
    let per_group = outputs / group;
    let most = channels_last::tile_vectors_max();
    let (mut packed, mut tiles) = (Vec::new(), Vec::new());
    for g in 0..group {
        // Tiles of nearly equal width.
        let mut vectors = per_group.div_ceil(16);
        let mut count = vectors.div_ceil(most);
        let mut first = 0;
        while count > 0 {
            let part = vectors.div_ceil(count);
            let width = (per_group - first).min(part * 16);
            let start = packed.len();
            for tap in 0..taps {
                for input in 0..inputs {
                    let at = |o: usize| ((g * per_group + first + o) * inputs + input) * taps + tap;
                    packed.extend((0..width).map(|o| values[at(o)]));
                    packed.resize(packed.len() + part * 16 - width, 0.0);
                }
            }
            let size = packed.len() - start;
            tiles.push(Tile { group: g, output: g * per_group + first, width, start, size });
            first += width;
            vectors -= part;
            count -= 1;
        }
    }
    Weights::Dense { packed, tiles }
}
