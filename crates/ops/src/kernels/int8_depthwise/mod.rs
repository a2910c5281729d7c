//! Inner loops of a depthwise convolution of u8 inputs with i8 weights, channels last.
//!
//! y[p, c] = level(bias[c] + Σ w[ky, kx, c] · x[line ky, p·stride + kx·dilation − pad, c]).
//! A product instruction sums four neighbouring bytes, so four lines of the input are laid out
//! column by column first: [column, four lines, channel] becomes [column, channel, four lines].
//! AVX2 has pairs of lines instead.

#[cfg(target_arch = "x86_64")]
mod pairs;

use super::int8_convolution::{Int8Isa, Line, Out, Target};
#[cfg(target_arch = "x86_64")]
use super::sums::Vnni;
use super::sums::{Portable, Sums, place_in_block};
use super::unrolled;
use crate::geometry::Axis;

/// Channels that are computed together, where four lines are.
const BLOCK: usize = 64;

/// Bytes of interleaved columns that stay in the L1 cache.
const COLUMN_BYTES: usize = 24 << 10;

/// How inputs and weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Weights [block of 64, kx, ⌈lines / 4⌉, 4 vectors, 16, 4 lines], channels in the order of
    /// [`place_in_block`].
    Fours,
    /// Weights of 16 bits, [block of 16, kx, ⌈lines / 2⌉, 16, 2 lines], channels as they are.
    #[cfg(target_arch = "x86_64")]
    Pairs,
}

impl Layout {
    /// Channels that are computed together.
    pub(crate) fn block(self) -> usize {
        match self {
            Self::Fours => BLOCK,
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => pairs::BLOCK,
        }
    }

    /// Lines that lie side by side.
    pub(crate) fn lines(self) -> usize {
        match self {
            Self::Fours => 4,
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => 2,
        }
    }

    /// The channel at each place of a block.
    pub(crate) fn order(self) -> impl Iterator<Item = usize> {
        (0..self.block()).map(move |at| match self {
            Self::Fours => place_in_block(at / 16, at % 16),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => at,
        })
    }

    /// Bytes of the lines that lie side by side, of one column and block.
    fn unit_bytes(self) -> usize {
        match self {
            Self::Fours => 4 * BLOCK,
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => pairs::PAIR_BYTES,
        }
    }

    /// Vectors of weights that a column's unit of lines takes.
    fn unit_vectors(self) -> usize {
        self.unit_bytes() / 64
    }
}

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
    pub(crate) layout: Layout,
    /// As the layout has them, like bias and scales: whole blocks.
    pub(crate) w: &'a [Line],
    pub(crate) bias: &'a [i32],
}

impl Int8DepthwiseLine<'_> {
    /// Sets of lines that lie side by side.
    fn units(&self) -> usize {
        self.lines.len().div_ceil(self.layout.lines())
    }

    fn column_bytes(&self) -> usize {
        self.units() * self.layout.unit_bytes()
    }

    fn reach(&self) -> usize {
        (self.axis.kernel - 1) * self.axis.dilation
    }

    /// Pixels whose columns are laid out together.
    fn pixels_max(&self) -> usize {
        let columns = COLUMN_BYTES / self.column_bytes();
        let pixels = columns.saturating_sub(self.reach() + 1) / self.axis.stride + 1;
        pixels.clamp(4.min(self.axis.output), self.axis.output)
    }

    /// Columns under so many pixels, and of them those that lie in the input.
    fn columns(&self, from: usize, pixels: usize) -> (usize, [usize; 2]) {
        let axis = &self.axis;
        let columns = (pixels - 1) * axis.stride + self.reach() + 1;
        let start = from * axis.stride;
        let inside =
            [axis.pad, axis.pad + axis.input].map(|end| end.saturating_sub(start).min(columns));
        (columns, inside)
    }

    /// Bytes that computing the line needs beside it.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.columns(0, self.pixels_max()).0 * self.column_bytes()
    }
}

impl Int8Isa {
    /// How a depthwise convolution has its weights.
    pub(crate) fn depthwise_layout(self) -> Layout {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::Avx2Narrow => Layout::Pairs,
            _ => Layout::Fours,
        }
    }

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
        assert_eq!(line.layout, self.depthwise_layout(), "weights are laid out for the CPU");
        let (layout, block) = (line.layout, line.layout.block());
        let blocks = line.channels.div_ceil(block);
        assert!(line.w.len() >= blocks * line.axis.kernel * line.units() * layout.unit_vectors());
        assert!(line.bias.len() >= blocks * block);
        let written = line.axis.output * line.channels;
        let out = match target {
            Target::Levels { out, scales, levels } => {
                assert!(out.len() >= written && scales.len() >= blocks * block);
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
            Self::Avx2Narrow | Self::Avx2 => unsafe { pairs::depthwise(&out, scratch, line) },
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
    let (axis, fours) = (&line.axis, line.units());
    let padding = [line.pad; BLOCK];
    let (columns, inside) = line.columns(from, pixels);
    let start = from * axis.stride;
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
        let (axis, column) = (&line.axis, line.column_bytes());
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
            for _ in 0..line.units() {
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
