//! Rows of u8 that come in, and results that go out.

use super::{ROUND, ROWS};
use crate::kernels::softmax::{LANES, max_lanes};
use crate::kernels::vectorized;

/// Integer sums of eight rows, of low bytes and, where levels have two, of high ones further on.
#[derive(Clone, Copy)]
pub(super) struct Sums<'a> {
    pub(super) low: &'a [i32],
    /// Where those of high bytes begin; 0 if there are none.
    pub(super) high: usize,
    pub(super) columns: usize,
}

impl<'a> Sums<'a> {
    /// Low and high sums of a row.
    #[inline(always)]
    fn row(&self, row: usize, size: usize) -> [&'a [i32]; 2] {
        [0, self.high].map(|area| &self.low[area + row * self.columns..][..size])
    }

    #[inline(always)]
    fn value(&self, low: i32, high: i32) -> f32 {
        let high = if self.high == 0 { 0 } else { high };
        (high as f32).mul_add(256.0, low as f32)
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn sum_of(levels: &[u8]) -> i32 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi64, _mm_cvtsi128_si32, _mm_loadu_si128, _mm_sad_epu8,
        _mm_setzero_si128, _mm_unpackhi_epi64,
    };
    const BYTES: usize = size_of::<__m128i>();
    let (chunks, rest) = levels.as_chunks::<BYTES>();
    // SAFETY: every x86-64 has the instructions, and a chunk has as many bytes as are read.
    let sum = unsafe {
        let mut sums = _mm_setzero_si128();
        for chunk in chunks {
            let chunk = _mm_loadu_si128(chunk.as_ptr().cast());
            sums = _mm_add_epi64(sums, _mm_sad_epu8(chunk, _mm_setzero_si128()));
        }
        _mm_cvtsi128_si32(_mm_add_epi64(sums, _mm_unpackhi_epi64(sums, sums)))
    };
    sum + rest.iter().map(|&level| i32::from(level)).sum::<i32>()
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn sum_of(levels: &[u8]) -> i32 {
    levels.iter().map(|&level| i32::from(level)).sum()
}

vectorized! {
    /// The sum of each of some rows of `size` levels.
    pub(super) fn sum_rows<FMA>(sums: &mut [i32], data: &[u8], stride: usize, size: usize) {
        for (row, sum) in sums.iter_mut().enumerate() {
            *sum = sum_of(&data[row * stride..][..size]);
        }
    }

    /// Copies a row for each of `sums`, which it sums, and pads them to `depth` and `ROWS` by 0.
    pub(super) fn take_rows<FMA>(
        left: &mut [u8],
        sums: &mut [i32],
        data: &[u8],
        stride: usize,
        size: usize,
        depth: usize,
    ) {
        let left = &mut left[..ROWS * depth];
        if depth > size || sums.len() < ROWS {
            left.fill(0);
        }
        for (row, sum) in sums.iter_mut().enumerate() {
            let from = &data[row * stride..][..size];
            left[row * depth..][..size].copy_from_slice(from);
            *sum = sum_of(from);
        }
    }

    /// out = sums·factor, rows of `size`, a factor each.
    pub(super) fn rescale<FMA>(
        out: &mut [f32],
        stride: usize,
        sums: Sums<'_>,
        factors: &[f32],
        size: usize,
    ) {
        for (row, &factor) in factors.iter().enumerate() {
            let out = &mut out[row * stride..][..size];
            let [low, high] = sums.row(row, size);
            for i in 0..size {
                out[i] = sums.value(low[i], high[i]) * factor;
            }
        }
    }

    /// out = clamp(round(sums·factor·inverse) + `zero_point`), a factor for each row and an inverse
    /// scale for each column.
    pub(super) fn requantize<FMA>(
        out: &mut [u8],
        stride: usize,
        sums: Sums<'_>,
        factors: &[f32],
        inverse_scales: &[f32],
        zero_point: i32,
    ) {
        let (lowest, highest) = (-zero_point as f32, (255 - zero_point) as f32);
        let size = inverse_scales.len();
        for (row, &factor) in factors.iter().enumerate() {
            let out = &mut out[row * stride..][..size];
            let [low, high] = sums.row(row, size);
            for i in 0..size {
                let exact = sums.value(low[i], high[i]) * factor * inverse_scales[i];
                let bounded = if exact > lowest { exact } else { lowest };
                let bounded = if bounded < highest { bounded } else { highest };
                out[i] = ((bounded + ROUND).to_bits() as i32 + zero_point) as u8;
            }
        }
    }

    /// bias = addends·log₂e, what is finite staying so; gives the highest addend that is no NaN, and
    /// other than 0 where one is NaN.
    pub(super) fn addends<FMA>(bias: &mut [f32], addends: &[f32]) -> [f32; 2] {
        let bias = &mut bias[..addends.len()];
        let (mut highest, mut is_nan) = ([f32::NEG_INFINITY; LANES], [0_u32; LANES]);
        let (chunks, rest) = addends.as_chunks::<LANES>();
        let (into, behind) = bias.as_chunks_mut::<LANES>();
        for (into, chunk) in into.iter_mut().zip(chunks) {
            for lane in 0..LANES {
                into[lane] = in_powers_of_two(chunk[lane]);
                highest[lane] = if chunk[lane] > highest[lane] { chunk[lane] } else { highest[lane] };
                is_nan[lane] |= u32::from(chunk[lane].is_nan());
            }
        }
        for (lane, (into, &addend)) in behind.iter_mut().zip(rest).enumerate() {
            *into = in_powers_of_two(addend);
            highest[lane] = if addend > highest[lane] { addend } else { highest[lane] };
            is_nan[lane] |= u32::from(addend.is_nan());
        }
        [max_lanes(highest), is_nan.iter().sum::<u32>() as f32]
    }

    /// The highest that is no NaN.
    pub(super) fn highest<FMA>(values: &[f32]) -> f32 {
        let mut highest = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                highest[lane] = if chunk[lane] > highest[lane] { chunk[lane] } else { highest[lane] };
            }
        }
        for (highest, &value) in highest.iter_mut().zip(rest) {
            *highest = if value > *highest { value } else { *highest };
        }
        max_lanes(highest)
    }
}

/// An addend times log₂e. The least f32 must not become −∞, which weighs nothing even among its like.
#[inline(always)]
fn in_powers_of_two(addend: f32) -> f32 {
    let scaled = addend * std::f32::consts::LOG2_E;
    let bounded = if scaled < f32::MIN { f32::MIN } else { scaled };
    if addend < f32::MIN { addend } else { bounded }
}
