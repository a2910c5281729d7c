//! The same loops for AVX2, whose product of bytes saturates: two lines of the input side by side in
//! 16 bits, which one instruction multiplies by two weights each and adds up to 32.
//!
//! Columns lie as [column, pair of lines, 16 channels, 2 lines] in the scratch memory.
// Every instruction is of this architecture, and its name says so.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use super::super::int8_convolution::Out;
use super::super::sums::{Avx2, Sums};
use super::super::unrolled;
use super::Int8DepthwiseLine;

/// Channels that are computed together.
pub(crate) const BLOCK: usize = 16;

/// Bytes of a column's pair of lines.
pub(super) const PAIR_BYTES: usize = 4 * BLOCK;

/// # Safety
/// The CPU has AVX2 and FMA; every place was checked.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn depthwise(out: &Out, scratch: &mut [u8], line: &Int8DepthwiseLine) {
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
                lay_out(scratch, line, [first, count], [from, pixels]);
                for at in (0..pixels).step_by(4) {
                    match pixels - at {
                        1 => tile::<1>(out, scratch, line, block, [from, at]),
                        2 => tile::<2>(out, scratch, line, block, [from, at]),
                        3 => tile::<3>(out, scratch, line, block, [from, at]),
                        _ => tile::<4>(out, scratch, line, block, [from, at]),
                    }
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
unsafe fn lay_out(
    scratch: &mut [u8],
    line: &Int8DepthwiseLine,
    [first, count]: [usize; 2],
    [from, pixels]: [usize; 2],
) {
    let axis = &line.axis;
    let padding = [line.pad; BLOCK];
    let (columns, inside) = line.columns(from, pixels);
    // The first column inside, which is not read if there is none.
    let x = (from * axis.stride + inside[0]).saturating_sub(axis.pad);
    let step = line.column_bytes();
    for (pair, lines) in line.lines.chunks(2).enumerate() {
        let begin = |at: usize| lines.get(at).copied().flatten();
        let rows = [0, 1].map(|at| match begin(at) {
            Some(begin) => line.x.as_ptr().wrapping_add(begin + x * line.channels + first),
            None => padding.as_ptr(),
        });
        // Lines of padding stand still.
        let steps = [0, 1].map(|at| if begin(at).is_some() { line.channels } else { 0 });
        let mut to = scratch.as_mut_ptr().wrapping_add(pair * PAIR_BYTES);
        // SAFETY: the scratch has room for every column, and rows hold `count` bytes: those inside
        // were checked, and padding is as long as a block.
        unsafe {
            let pad = [padding.as_ptr(); 2];
            for _ in 0..inside[0] {
                interleave(to, pad, BLOCK);
                to = to.wrapping_add(step);
            }
            let [mut a, mut b] = rows;
            for _ in inside[0]..inside[1] {
                interleave(to, [a, b], count);
                (a, b) = (a.wrapping_add(steps[0]), b.wrapping_add(steps[1]));
                to = to.wrapping_add(step);
            }
            for _ in inside[1]..columns {
                interleave(to, pad, BLOCK);
                to = to.wrapping_add(step);
            }
        }
    }
}

/// Lays `count` ≤ 16 bytes of two rows out side by side, each in 16 bits.
///
/// # Safety
/// The CPU has AVX2; rows are readable for `count` bytes, `to` is writable for [`PAIR_BYTES`].
#[inline(always)]
unsafe fn interleave(to: *mut u8, rows: [*const u8; 2], count: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let [a, b] = if count < BLOCK {
            let mut copies = [[0_u8; BLOCK]; 2];
            for (row, copy) in rows.iter().zip(&mut copies) {
                std::ptr::copy_nonoverlapping(*row, copy.as_mut_ptr(), count);
            }
            [_mm_loadu_si128(copies[0].as_ptr().cast()), _mm_loadu_si128(copies[1].as_ptr().cast())]
        } else {
            [_mm_loadu_si128(rows[0].cast()), _mm_loadu_si128(rows[1].cast())]
        };
        let low = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b));
        let high = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b));
        _mm256_storeu_si256(to.cast(), low);
        _mm256_storeu_si256(to.add(PAIR_BYTES / 2).cast(), high);
    }
}

/// Pixels from + at.. of one block of channels.
///
/// # Safety
/// As [`depthwise`].
#[inline(always)]
unsafe fn tile<const P: usize>(
    out: &Out,
    scratch: &[u8],
    line: &Int8DepthwiseLine,
    block: usize,
    [from, at]: [usize; 2],
) {
    // SAFETY: the caller vouches for every place.
    unsafe {
        let (axis, column) = (&line.axis, line.column_bytes());
        let bias = line.bias.as_ptr().add(block * BLOCK).cast();
        let bias = [_mm256_loadu_si256(bias), _mm256_loadu_si256(bias.add(1))];
        let mut sums = [bias; P];
        let mut w = line.w.as_ptr().cast::<__m256i>().add(block * axis.kernel * line.units() * 2);
        let step = axis.stride * column;
        let x = scratch.as_ptr().add(at * step);
        for kx in 0..axis.kernel {
            let mut x = x.add(kx * axis.dilation * column);
            for _ in 0..line.units() {
                unrolled!(half < 2, {
                    let w = _mm256_loadu_si256(w.add(half));
                    unrolled!(p < P, {
                        let x = _mm256_loadu_si256(x.add(p * step + half * 32).cast());
                        sums[p][half] = _mm256_add_epi32(sums[p][half], _mm256_madd_epi16(x, w));
                    });
                });
                w = w.add(2);
                x = x.add(PAIR_BYTES);
            }
        }
        let first = block * BLOCK;
        let count = (line.channels - first).min(BLOCK);
        let place = |p: usize| (from + at + p) * line.channels + first;
        match out {
            Out::Levels(out, scales, levels) => {
                let scales = scales.add(first);
                unrolled!(p < P, {
                    if p % 2 == 1 {
                        let pair = [Avx2::<false>(sums[p ^ 1]), Avx2(sums[p])];
                        let to = [out.add(place(p ^ 1)), out.add(place(p))];
                        Avx2::store_two_levels(pair, to, count, scales, *levels);
                    } else if p + 1 == P {
                        let sums = Avx2::<false>(sums[p]);
                        sums.store_levels(out.add(place(p)), count, scales, *levels);
                    }
                });
            }
            Out::Sums(out) => {
                unrolled!(p < P, { Avx2::<false>(sums[p]).store(out.add(place(p)), count) });
            }
        }
    }
}
