//! Integer scores to probabilities in levels.

use super::{Path, ROUND, ROWS};
use crate::kernels::softmax::{LANES, max_lanes, sum_lanes};
use crate::kernels::vectorized;

/// The least exponent of 2 that a normal f32 has.
const LEAST: f32 = -126.0;
/// 2ʳ for |r| ≤ ½ as a polynomial, the highest power first: a least-maximum fit with 1 at 0, made
/// for this file (9e-8).
#[allow(clippy::approx_constant)] // the fit's own coefficient, near ln 2
const POWER: [f32; 6] =
    [1.326_472_6e-3, 9.671_513e-3, 5.550_733_6e-2, 0.240_222_42, 0.693_147, 1.0];

/// 65535 times as much: of levels in 16 bits.
const FINE_POWER: [f32; 6] = {
    let mut power = POWER;
    let mut at = 0;
    while at < power.len() {
        power[at] *= 65535.0;
        at += 1;
    }
    power
};

/// Exponents of 2 from here down are level 0 of 65535.
const FINE_LEAST: f32 = -18.0;

/// c·2ˣ for x ≤ 0 within 2e-7, c the last coefficient; what lies below `least` is as if there.
#[inline(always)]
fn power_of_two(x: f32, least: f32, coefficients: &[f32; 6]) -> f32 {
    let bounded = if x > least { x } else { least };
    let shifted = bounded + ROUND;
    let r = bounded - (shifted - ROUND);
    let mut p = coefficients[0];
    for &coefficient in &coefficients[1..] {
        p = p.mul_add(r, coefficient);
    }
    // The low bits of `shifted` are n: added to the exponent of 2ʳ.
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// 2ˣ for x ≤ 0; 0 where that is no normal f32.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f32 {
    let power = power_of_two(x, LEAST, &POWER);
    if x > LEAST { power } else { 0.0 }
}

impl Path {
    /// As the function of that name.
    pub(super) fn scores(self, scores: &mut [f32], sums: &[i32], bias: &[f32], scale: f32) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Vnni {
            assert!(sums.len() == scores.len() && bias.len() == scores.len());
            assert!(scores.len().is_multiple_of(LANES));
            // SAFETY: the path was found present, and the sizes were checked above.
            return unsafe { x86::scores(scores, sums, bias, scale) };
        }
        scaled_scores(scores, sums, bias, scale)
    }

    /// As the function of that name.
    pub(super) fn probabilities(
        self,
        levels: &mut [u8],
        scores: &mut [f32],
        highest: &[f32; ROWS],
        step: f32,
    ) -> [i32; ROWS] {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Vnni {
            assert!(levels.len() == scores.len() && scores.len().is_multiple_of(ROWS * LANES));
            // SAFETY: the path was found present, and the sizes were checked above.
            return unsafe { x86::probabilities(levels, scores, highest, step) };
        }
        probabilities(levels, scores, highest, step)
    }

    /// As the function of that name.
    pub(super) fn weights(
        self,
        high: &mut [u8],
        low: &mut [u8],
        scores: &[f32],
        highest: &[f32; ROWS],
    ) -> [[i32; ROWS]; 2] {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Vnni {
            assert!(high.len() == scores.len() && low.len() == scores.len());
            assert!(scores.len().is_multiple_of(ROWS * LANES));
            // SAFETY: the path was found present, and the sizes were checked above.
            return unsafe { x86::weights(high, low, scores, highest) };
        }
        weights(high, low, scores, highest)
    }
}

vectorized! {
    /// scores = sums·scale + bias; gives the highest.
    fn scaled_scores<FMA>(scores: &mut [f32], sums: &[i32], bias: &[f32], scale: f32) -> f32 {
        let scores = scores.as_chunks_mut::<LANES>().0;
        let (sums, bias) = (sums.as_chunks::<LANES>().0, bias.as_chunks::<LANES>().0);
        let mut highest = [f32::NEG_INFINITY; LANES];
        for ((scores, sums), bias) in scores.iter_mut().zip(sums).zip(bias) {
            for lane in 0..LANES {
                let score = (sums[lane] as f32).mul_add(scale, bias[lane]);
                scores[lane] = score;
                highest[lane] = if score > highest[lane] { score } else { highest[lane] };
            }
        }
        max_lanes(highest)
    }

    /// Softmax of rows of scores, which are powers of two, in steps of u8, `highest` the highest of
    /// each; 0 where that is not finite. Gives the sum of each row's levels.
    fn probabilities<FMA>(
        levels: &mut [u8],
        scores: &mut [f32],
        highest: &[f32; ROWS],
        step: f32,
    ) -> [i32; ROWS] {
        let size = scores.len() / ROWS;
        let mut totals = [0_i32; ROWS];
        for (row, total) in totals.iter_mut().enumerate() {
            let area = row * size..(row + 1) * size;
            let levels = &mut levels[area.clone()];
            let highest = highest[row];
            if !highest.is_finite() {
                levels.fill(0);
                continue;
            }
            let levels = levels.as_chunks_mut::<LANES>().0;
            let scores = scores[area].as_chunks_mut::<LANES>().0;
            let mut lanes = [0.0_f32; LANES];
            for scores in scores.iter_mut() {
                for lane in 0..LANES {
                    scores[lane] = exp2(scores[lane] - highest);
                    lanes[lane] += scores[lane];
                }
            }
            let factor = 1.0 / (sum_lanes(lanes) * step);
            let mut of_lanes = [0_i32; LANES];
            for (levels, scores) in levels.iter_mut().zip(scores.iter()) {
                for lane in 0..LANES {
                    let level = scores[lane] * factor;
                    let bounded = if level < 255.0 { level } else { 255.0 };
                    let level = (bounded + ROUND).to_bits() as i32 & 0xffff;
                    of_lanes[lane] += level;
                    levels[lane] = level as u8;
                }
            }
            *total = of_lanes.into_iter().sum();
        }
        totals
    }

    /// 2^(score − highest) of rows of scores in levels of 1/65535, their high and their low bytes;
    /// 0 where the highest is not finite. Gives the sums of each row's high and low bytes.
    fn weights<FMA>(
        high: &mut [u8],
        low: &mut [u8],
        scores: &[f32],
        highest: &[f32; ROWS],
    ) -> [[i32; ROWS]; 2] {
        let size = scores.len() / ROWS;
        let mut totals = [[0_i32; ROWS]; 2];
        for (row, &highest) in highest.iter().enumerate() {
            let area = row * size..(row + 1) * size;
            let (high, low) = (&mut high[area.clone()], &mut low[area.clone()]);
            if !highest.is_finite() {
                high.fill(0);
                low.fill(0);
                continue;
            }
            let (high, low) = (high.as_chunks_mut::<LANES>().0, low.as_chunks_mut::<LANES>().0);
            let mut sums = [[0_i32; LANES]; 2];
            let parts = scores[area].as_chunks::<LANES>().0.iter().zip(high).zip(low);
            for ((scores, high), low) in parts {
                for lane in 0..LANES {
                    let exact = power_of_two(scores[lane] - highest, FINE_LEAST, &FINE_POWER);
                    let level = (exact + ROUND).to_bits() as i32 & 0xffff;
                    sums[0][lane] += level >> 8;
                    sums[1][lane] += level & 0xff;
                    high[lane] = (level >> 8) as u8;
                    low[lane] = level as u8;
                }
            }
            for (totals, sums) in totals.iter_mut().zip(sums) {
                totals[row] = sums.into_iter().sum();
            }
        }
        totals
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    // Every instruction is of this architecture, and its name says so.
    #![allow(clippy::wildcard_imports)]

    use std::arch::x86_64::*;

    use super::{FINE_LEAST, FINE_POWER, LANES, LEAST, POWER, ROUND, ROWS, sum_lanes};

    /// As [`scaled_scores`](super::scaled_scores), bit for bit.
    ///
    /// # Safety
    /// AVX-512; slices of one length, a multiple of 16.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn scores(scores: &mut [f32], sums: &[i32], bias: &[f32], scale: f32) -> f32 {
        let scale = _mm512_set1_ps(scale);
        let mut highest = _mm512_set1_ps(f32::NEG_INFINITY);
        for at in (0..scores.len()).step_by(LANES) {
            // SAFETY: `at` and the 16 places from there on lie within slices of one length.
            unsafe {
                let sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.as_ptr().add(at).cast()));
                let score = _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(bias.as_ptr().add(at)));
                _mm512_storeu_ps(scores.as_mut_ptr().add(at), score);
                highest = _mm512_max_ps(score, highest);
            }
        }
        _mm512_reduce_max_ps(highest)
    }

    /// As [`probabilities`](super::probabilities), bit for bit. One row's sum is not waited for
    /// before the next row begins.
    ///
    /// # Safety
    /// AVX-512; slices of one length, a multiple of 8·16.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn probabilities(
        levels: &mut [u8],
        scores: &mut [f32],
        highest: &[f32; ROWS],
        step: f32,
    ) -> [i32; ROWS] {
        let size = scores.len() / ROWS;
        let least = _mm512_set1_ps(LEAST);
        let mut factors = [0.0_f32; ROWS];
        for (row, factor) in factors.iter_mut().enumerate() {
            if !highest[row].is_finite() {
                continue;
            }
            let highest = _mm512_set1_ps(highest[row]);
            let mut lanes = _mm512_setzero_ps();
            for at in (row * size..(row + 1) * size).step_by(LANES) {
                // SAFETY: `at` and the 16 places from there on lie within the row.
                unsafe {
                    let place = scores.as_mut_ptr().add(at);
                    let exponent = _mm512_sub_ps(_mm512_loadu_ps(place), highest);
                    let is_seen = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(exponent, least);
                    let power = power_of_two(exponent, least, &POWER);
                    let weight = _mm512_maskz_mov_ps(is_seen, power);
                    _mm512_storeu_ps(place, weight);
                    lanes = _mm512_add_ps(lanes, weight);
                }
            }
            let mut of_lanes = [0.0_f32; LANES];
            // SAFETY: an array of 16.
            unsafe { _mm512_storeu_ps(of_lanes.as_mut_ptr(), lanes) };
            *factor = 1.0 / (sum_lanes(of_lanes) * step);
        }
        let (most, round) = (_mm512_set1_ps(255.0), _mm512_set1_ps(ROUND));
        let mask = _mm512_set1_epi32(0xffff);
        let mut totals = [0_i32; ROWS];
        for (row, total) in totals.iter_mut().enumerate() {
            if !highest[row].is_finite() {
                levels[row * size..][..size].fill(0);
                continue;
            }
            let factor = _mm512_set1_ps(factors[row]);
            let mut of_lanes = _mm512_setzero_si512();
            for at in (row * size..(row + 1) * size).step_by(LANES) {
                // SAFETY: `at` and the 16 places from there on lie within the row.
                unsafe {
                    let level = _mm512_mul_ps(_mm512_loadu_ps(scores.as_ptr().add(at)), factor);
                    let rounded = _mm512_add_ps(_mm512_min_ps(level, most), round);
                    let level = _mm512_and_si512(_mm512_castps_si512(rounded), mask);
                    let bytes = _mm512_cvtepi32_epi8(level);
                    _mm_storeu_si128(levels.as_mut_ptr().add(at).cast(), bytes);
                    of_lanes = _mm512_add_epi32(of_lanes, level);
                }
            }
            *total = _mm512_reduce_add_epi32(of_lanes);
        }
        totals
    }

    /// As [`weights`](super::weights), bit for bit.
    ///
    /// # Safety
    /// AVX-512; slices of one length, a multiple of 8·16.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn weights(
        high: &mut [u8],
        low: &mut [u8],
        scores: &[f32],
        highest: &[f32; ROWS],
    ) -> [[i32; ROWS]; 2] {
        let size = scores.len() / ROWS;
        let mut totals = [[0_i32; ROWS]; 2];
        for row in 0..ROWS {
            if !highest[row].is_finite() {
                high[row * size..][..size].fill(0);
                low[row * size..][..size].fill(0);
                continue;
            }
            let highest = _mm512_set1_ps(highest[row]);
            let mut sums = [_mm512_setzero_si512(); 2];
            let (mut at, end) = (row * size, (row + 1) * size);
            while at < end {
                // SAFETY: the places from `at` on lie within the row.
                unsafe {
                    let to = [high.as_mut_ptr().add(at), low.as_mut_ptr().add(at)];
                    let from = scores.as_ptr().add(at);
                    if end - at >= 2 * LANES {
                        put_weights::<2>(to, from, highest, &mut sums);
                        at += 2 * LANES;
                    } else {
                        put_weights::<1>(to, from, highest, &mut sums);
                        at += LANES;
                    }
                }
            }
            let [all, of_high] = sums;
            // The sum of all may take a bit more than 31, that of the low bytes does not.
            totals[0][row] = _mm512_reduce_add_epi32(of_high);
            let all = _mm512_reduce_add_epi32(all);
            totals[1][row] = all.wrapping_sub(totals[0][row] << 8);
        }
        totals
    }

    /// Levels of `W` vectors, each step of all of them before the next, so that none waits for the
    /// one before; added to the sums of levels and of their high bytes.
    ///
    /// # Safety
    /// `W`·16 places behind each pointer.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn put_weights<const W: usize>(
        [high, low]: [*mut u8; 2],
        scores: *const f32,
        highest: __m512,
        sums: &mut [__m512i; 2],
    ) {
        let mut exponents = [highest; W];
        for (i, exponent) in exponents.iter_mut().enumerate() {
            // SAFETY: as the caller's.
            let score = unsafe { _mm512_loadu_ps(scores.add(i * LANES)) };
            *exponent = _mm512_sub_ps(score, highest);
        }
        let powers = powers_of_two(exponents, _mm512_set1_ps(FINE_LEAST), &FINE_POWER);
        for (i, power) in powers.into_iter().enumerate() {
            // To the nearest integer, half to even, as adding 1.5·2²³ does.
            let level = _mm512_cvtps_epi32(power);
            let upper = _mm512_srli_epi32::<8>(level);
            let bytes = [_mm512_cvtepi32_epi8(upper), _mm512_cvtepi32_epi8(level)];
            // SAFETY: as the caller's.
            unsafe {
                _mm_storeu_si128(high.add(i * LANES).cast(), bytes[0]);
                _mm_storeu_si128(low.add(i * LANES).cast(), bytes[1]);
            }
            sums[0] = _mm512_add_epi32(sums[0], level);
            sums[1] = _mm512_add_epi32(sums[1], upper);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn power_of_two(x: __m512, least: __m512, coefficients: &[f32; 6]) -> __m512 {
        powers_of_two([x], least, coefficients)[0]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn powers_of_two<const W: usize>(
        mut x: [__m512; W],
        least: __m512,
        coefficients: &[f32; 6],
    ) -> [__m512; W] {
        let round = _mm512_set1_ps(ROUND);
        let (mut r, mut p) = (x, [_mm512_set1_ps(coefficients[0]); W]);
        for i in 0..W {
            let bounded = _mm512_max_ps(x[i], least);
            let shifted = _mm512_add_ps(bounded, round);
            r[i] = _mm512_sub_ps(bounded, _mm512_sub_ps(shifted, round));
            x[i] = shifted;
        }
        for &coefficient in &coefficients[1..] {
            for i in 0..W {
                p[i] = _mm512_fmadd_ps(p[i], r[i], _mm512_set1_ps(coefficient));
            }
        }
        for i in 0..W {
            let exponent_bits = _mm512_slli_epi32::<23>(_mm512_castps_si512(x[i]));
            let sum = _mm512_add_epi32(_mm512_castps_si512(p[i]), exponent_bits);
            x[i] = _mm512_castsi512_ps(sum);
        }
        x
    }
}
