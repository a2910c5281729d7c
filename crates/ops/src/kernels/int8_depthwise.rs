//! Inner loops of a depthwise convolution of u8 inputs with i8 weights, channels last.
//!
//! y[p, c] = level(bias[c] + Σ w[ky, kx, c] · x[line ky, p·stride + kx·dilation − pad, c]).
//! A product instruction sums four neighbouring bytes, so four lines of the input are laid out
//! column by column first: [column, four lines, channel] becomes [column, channel, four lines].

use super::int8_convolution::{Int8Isa, Line, Out, Target};
#[cfg(target_arch = "x86_64")]
use super::sums::{Avx2, Vnni};
use super::sums::{Portable, Sums, place_in_block};
use super::unrolled;
use crate::geometry::Axis;

/// Channels that are computed together.
pub(crate) const BLOCK: usize = 64;

/// Bytes of interleaved columns that stay in the L1 cache.
const COLUMN_BYTES: usize = 24 << 10;

/// One line of pixels.
pub(crate) struct Int8DepthwiseLine<'a> {
    /// [height, width, channels]
    pub(crate) x: &'a [u8],
    /// Per row of the window, where its line begins in x; `None` in the padding.
    pub(crate) lines: &'a [Option<usize>],
    /// Along the line.
    pub(crate) axis: Axis,
    pub(crate) channels: usize,
    /// What padding counts as.
    pub(crate) pad: u8,
    /// [block, kx, ⌈lines / 4⌉, 4 vectors, 16, 4 lines], in the order of
    /// [`super::sums::place_in_block`], as are bias and
    /// scales: 64 per block.
    pub(crate) w: &'a [Line],
    pub(crate) bias: &'a [i32],
}

impl Int8DepthwiseLine<'_> {
    fn fours(&self) -> usize {
        self.lines.len().div_ceil(4)
    }

    fn reach(&self) -> usize {
        (self.axis.kernel - 1) * self.axis.dilation
    }

    /// Pixels whose columns are laid out together.
    fn pixels_max(&self) -> usize {
        let columns = COLUMN_BYTES / (256 * self.fours());
        let pixels = columns.saturating_sub(self.reach() + 1) / self.axis.stride + 1;
        pixels.clamp(4.min(self.axis.output), self.axis.output)
    }

    /// Bytes that computing the line needs beside it.
    pub(crate) fn scratch_bytes(&self) -> usize {
        let columns = (self.pixels_max() - 1) * self.axis.stride + self.reach() + 1;
        columns * self.fours() * 256
    }
}

impl Int8Isa {
    /// Computes one line, [pixels, channels].
    ///
    /// # Panics
    /// When the line reaches beyond a slice, or the CPU lacks the instructions.
    pub(crate) fn depthwise_line(
        self,
        target: Target,
        scratch: &mut [u8],
        line: &Int8DepthwiseLine,
    ) {
        if line.axis.output == 0 || line.channels == 0 {
            return;
        }
        let row = line.axis.input * line.channels;
        assert!(line.lines.iter().flatten().all(|start| start + row <= line.x.len()));
        let blocks = line.channels.div_ceil(BLOCK);
        assert!(line.w.len() >= blocks * line.axis.kernel * line.fours() * 4);
        assert!(line.bias.len() >= blocks * BLOCK);
        let written = line.axis.output * line.channels;
        let out = match target {
            Target::Levels { out, scales, levels } => {
                assert!(out.len() >= written && scales.len() >= blocks * BLOCK);
                Out::Levels(out.as_mut_ptr(), scales.as_ptr(), levels)
            }
            Target::Sums(out) => {
                assert!(out.len() >= written);
                Out::Sums(out.as_mut_ptr())
            }
        };
        assert!(scratch.len() >= line.scratch_bytes());
        self.check();
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: all places and the instructions were checked above.
            Self::Vnni => unsafe { vnni(&out, scratch, line) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx2Narrow => unsafe { avx2::<true>(&out, scratch, line) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx2 => unsafe { avx2::<false>(&out, scratch, line) },
            // SAFETY: as above.
            Self::Portable => unsafe { depthwise::<Portable, 1>(&out, scratch, line) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
unsafe fn vnni(out: &Out, scratch: &mut [u8], line: &Int8DepthwiseLine) {
    // SAFETY: the caller's promise.
    unsafe { depthwise::<Vnni, 4>(out, scratch, line) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const NARROW: bool>(out: &Out, scratch: &mut [u8], line: &Int8DepthwiseLine) {
    // SAFETY: the caller's promise.
    unsafe { depthwise::<Avx2<NARROW>, 1>(out, scratch, line) }
}

/// P pixels at a time.
///
/// # Safety
/// The CPU has the instructions; every place was checked.
#[inline(always)]
unsafe fn depthwise<L: Sums, const P: usize>(
    out: &Out,
    scratch: &mut [u8],
    line: &Int8DepthwiseLine,
) {
    let axis = &line.axis;
    let most = line.pixels_max();
    for block in 0..line.channels.div_ceil(BLOCK) {
        let first = block * BLOCK;
        let count = (line.channels - first).min(BLOCK);
        let mut from = 0;
        while from < axis.output {
            let pixels = most.min(axis.output - from);
            // SAFETY: pixels from..from + pixels and the block's channels belong to the line.
            unsafe {
                lay_out::<L>(scratch, line, [first, count], [from, pixels]);
                let mut at = 0;
                while at + P <= pixels {
                    tile::<L, P>(out, scratch, line, block, [from, at]);
                    at += P;
                }
                while at < pixels {
                    tile::<L, 1>(out, scratch, line, block, [from, at]);
                    at += 1;
                }
            }
            from += pixels;
        }
    }
}

/// Writes the columns under pixels from..from + pixels.
///
/// # Safety
/// As [`depthwise`].
#[inline(always)]
unsafe fn lay_out<L: Sums>(
    scratch: &mut [u8],
    line: &Int8DepthwiseLine,
    [first, count]: [usize; 2],
    [from, pixels]: [usize; 2],
) {
    let (axis, fours) = (&line.axis, line.fours());
    let padding = [line.pad; BLOCK];
    let columns = (pixels - 1) * axis.stride + line.reach() + 1;
    let start = from * axis.stride;
    // Of the columns, those that lie in the input.
    let inside =
        [axis.pad, axis.pad + axis.input].map(|end| end.saturating_sub(start).min(columns));
    for (four, lines) in line.lines.chunks(4).enumerate() {
        // Where the lines begin, and what is added from column to column: lines of padding stand still.
        let mut rows = [padding.as_ptr(); 4];
        let mut steps = [0; 4];
        for (at, begin) in lines.iter().enumerate() {
            if let Some(begin) = begin {
                // The first column inside, which is not read if there is none.
                let x = (start + inside[0]).saturating_sub(axis.pad);
                rows[at] = line.x.as_ptr().wrapping_add(begin + x * line.channels + first);
                steps[at] = line.channels;
            }
        }
        for column in 0..columns {
            // SAFETY: the scratch has room for every column, and rows hold `count` bytes: those
            // inside were checked, and padding is as long as a block.
            unsafe {
                let to = scratch.as_mut_ptr().add((column * fours + four) * 256);
                if column < inside[0] || column >= inside[1] {
                    L::interleave(to, [padding.as_ptr(); 4], count);
                } else {
                    L::interleave(to, rows, count);
                    for (row, step) in rows.iter_mut().zip(steps) {
                        *row = row.wrapping_add(step);
                    }
                }
            }
        }
    }
}

/// Pixels from + at.. of one block of channels.
///
/// # Safety
/// As [`depthwise`].
#[inline(always)]
unsafe fn tile<L: Sums, const P: usize>(
    out: &Out,
    scratch: &[u8],
    line: &Int8DepthwiseLine,
    block: usize,
    [from, at]: [usize; 2],
) {
    // SAFETY: the caller vouches for every place.
    unsafe {
        let (axis, column) = (&line.axis, line.fours() * 256);
        let bias = line.bias.as_ptr().add(block * BLOCK);
        let mut sums = [[L::load(bias); 4]; P];
        unrolled!(p < P, {
            unrolled!(v < 4, { sums[p][v] = L::load(bias.add(v * 16)) });
        });
        let mut w = line.w.as_ptr().cast::<i8>().add(block * axis.kernel * column);
        let x = scratch.as_ptr().add(at * axis.stride * column);
        let step = axis.stride * column;
        for kx in 0..axis.kernel {
            let mut x = x.add(kx * axis.dilation * column);
            for _ in 0..line.fours() {
                unrolled!(v < 4, {
                    let b = L::weights(w.add(v * 64));
                    unrolled!(p < P, {
                        sums[p][v] = sums[p][v].dot(L::inputs(x.add(p * step + v * 64)), b);
                    });
                });
                w = w.add(256);
                x = x.add(256);
            }
        }
        let first = block * BLOCK;
        let count = (line.channels - first).min(BLOCK);
        unrolled!(p < P, {
            let place = (from + at + p) * line.channels + first;
            match out {
                Out::Levels(out, scales, levels) => {
                    L::store_block(sums[p], out.add(place), count, scales.add(first), *levels);
                }
                Out::Sums(out) => store_sums(sums[p], out.add(place), count),
            }
        });
    }
}

/// Stores `count` sums of a block in the order of the channels.
///
/// # Safety
/// The pointer is writable for `count` values.
#[inline(always)]
unsafe fn store_sums<L: Sums>(sums: [L; 4], to: *mut i32, count: usize) {
    let mut lanes = [[0_i32; 16]; 4];
    for (sums, lanes) in sums.into_iter().zip(&mut lanes) {
        // SAFETY: an array of 16.
        unsafe { sums.store(lanes.as_mut_ptr(), 16) };
    }
    for (vector, lanes) in lanes.iter().enumerate() {
        for (lane, &sum) in lanes.iter().enumerate() {
            let place = place_in_block(vector, lane);
            if place < count {
                // SAFETY: the caller's promise.
                unsafe { *to.add(place) = sum };
            }
        }
    }
}
