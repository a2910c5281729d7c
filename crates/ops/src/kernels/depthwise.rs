//! Depthwise convolution of one channel.

use super::math::fma;
use super::vectorized;

/// Geometry of a 2-D convolution: sizes are [height, width].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) input: [usize; 2],
    pub(crate) output: [usize; 2],
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) dilation: [usize; 2],
    /// Padding at the start: top and left.
    pub(crate) pad: [usize; 2],
}

impl Window {
    /// Size of one phase plane, [rows, columns]: every stride-th row and column of the padded
    /// input, long enough for every tap of every output.
    fn plane(&self) -> [usize; 2] {
        std::array::from_fn(|i| {
            self.output[i] + ((self.kernel[i] - 1) * self.dilation[i]) / self.stride[i]
        })
    }

    /// Elements of scratch that one channel needs.
    pub(crate) fn scratch_size(&self) -> usize {
        let [rows, columns] = self.plane();
        self.stride[0] * self.stride[1] * rows * columns + self.output[0] * columns
    }
}

vectorized! {
    /// out = bias + Σ taps, clamped, for one channel. `weights` are [kernel height, width].
    ///
    /// The padded input is split into planes by the phase of the stride; then every tap of every
    /// output is a plain shifted row, and all rows are one long loop over the planes' pitch.
    pub(crate) fn depthwise_channel<FMA>(
        out: &mut [f32],
        input: &[f32],
        weights: &[f32],
        bias: f32,
        bounds: [f32; 2],
        window: &Window,
        scratch: &mut [f32],
    ) {
        let [rows, pitch] = window.plane();
        let (planes, sums) = scratch.split_at_mut(window.stride[0] * window.stride[1] * rows * pitch);
        fill_planes(planes, input, window);
        let [height, width] = window.output;
        let count = (height - 1) * pitch + width;
        let tap = |ky: usize, kx: usize| {
            let (y, x) = (ky * window.dilation[0], kx * window.dilation[1]);
            let phase = (y % window.stride[0]) * window.stride[1] + x % window.stride[1];
            let start = phase * rows * pitch + (y / window.stride[0]) * pitch + x / window.stride[1];
            &planes[start..start + count]
        };
        let sums = &mut sums[..count];
        if window.kernel == [3, 3] {
            let t: [&[f32]; 9] = std::array::from_fn(|i| tap(i / 3, i % 3));
            let w: &[f32; 9] = weights.first_chunk().expect("a 3×3 kernel has nine weights");
            if width >= WIDE {
                for (row, out) in out.chunks_exact_mut(width).enumerate() {
                    let start = row * pitch;
                    nine_taps::<FMA>(out, t.map(|tap| &tap[start..start + width]), w, bias);
                    clamp_row(out, bounds);
                }
                return;
            }
            nine_taps::<FMA>(sums, t, w, bias);
        } else {
            sums.fill(bias);
            for ky in 0..window.kernel[0] {
                for kx in 0..window.kernel[1] {
                    let weight = weights[ky * window.kernel[1] + kx];
                    for (sum, &value) in sums.iter_mut().zip(tap(ky, kx)) {
                        *sum = fma::<FMA>(value, weight, *sum);
                    }
                }
            }
        }
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            let sums = &sums[row * pitch..row * pitch + width];
            out.copy_from_slice(sums);
            clamp_row(out, bounds);
        }
    }
}

/// Rows at least this wide go straight to the output; narrower ones run as one long loop, since a
/// vector would be mostly empty in them.
const WIDE: usize = 48;

#[inline(always)]
fn clamp_row(row: &mut [f32], [low, high]: [f32; 2]) {
    for value in row {
        let bounded = if *value < low { low } else { *value };
        *value = if bounded > high { high } else { bounded };
    }
}

/// out = bias + Σ taps · weights.
#[inline(always)]
fn nine_taps<const FMA: bool>(out: &mut [f32], t: [&[f32]; 9], w: &[f32; 9], bias: f32) {
    let count = out.len();
    let [t0, t1, t2, t3, t4, t5, t6, t7, t8] = t.map(|tap| &tap[..count]);
    for (i, out) in out.iter_mut().enumerate() {
        let mut value = bias;
        value = fma::<FMA>(t0[i], w[0], value);
        value = fma::<FMA>(t1[i], w[1], value);
        value = fma::<FMA>(t2[i], w[2], value);
        value = fma::<FMA>(t3[i], w[3], value);
        value = fma::<FMA>(t4[i], w[4], value);
        value = fma::<FMA>(t5[i], w[5], value);
        value = fma::<FMA>(t6[i], w[6], value);
        value = fma::<FMA>(t7[i], w[7], value);
        *out = fma::<FMA>(t8[i], w[8], value);
    }
}

/// Copies the input, zero-padded, into planes [phase y, phase x, row, column].
#[inline(always)]
fn fill_planes(planes: &mut [f32], input: &[f32], window: &Window) {
    let [rows, pitch] = window.plane();
    let [height, width] = window.input;
    for phase_y in 0..window.stride[0] {
        for phase_x in 0..window.stride[1] {
            let phase = phase_y * window.stride[1] + phase_x;
            for row in 0..rows {
                let start = (phase * rows + row) * pitch;
                let out = &mut planes[start..start + pitch];
                let y = (row * window.stride[0] + phase_y).wrapping_sub(window.pad[0]);
                if y >= height {
                    out.fill(0.0);
                    continue;
                }
                let source = &input[y * width..(y + 1) * width];
                fill_row(out, source, phase_x, window.stride[1], window.pad[1]);
            }
        }
    }
}

/// out[c] = source[c·stride + phase − pad], 0 outside.
#[inline(always)]
fn fill_row(out: &mut [f32], source: &[f32], phase: usize, stride: usize, pad: usize) {
    // First column that lies inside, and the first that lies behind.
    let first = pad.saturating_sub(phase).div_ceil(stride).min(out.len());
    let end = (source.len() + pad).saturating_sub(phase).div_ceil(stride).clamp(first, out.len());
    out[..first].fill(0.0);
    out[end..].fill(0.0);
    if first == end {
        return;
    }
    let start = first * stride + phase - pad;
    if stride == 1 {
        out[first..end].copy_from_slice(&source[start..start + end - first]);
    } else {
        for (out, &value) in out[first..end].iter_mut().zip(source[start..].iter().step_by(stride))
        {
            *out = value;
        }
    }
}
