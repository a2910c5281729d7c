//! `LayerNormalization` of sums, and its levels: y ← normalized y + skip, q ← clamp(round(y / scale) +
//! zero point).
//!
//! Every path sums in the same four times sixteen parts and rounds each operation once, so that all
//! give the same bits.

use super::math::fma;
use super::quantize::level;
use super::softmax::{LANES, sum_lanes};
use super::vectorized;

/// What every row is normalized by, each of a row's size.
#[derive(Clone, Copy)]
pub(crate) struct Normalization<'a> {
    pub(crate) scale: &'a [f32],
    pub(crate) bias: &'a [f32],
    /// One over the scales of the levels.
    pub(crate) inverse_scales: &'a [f32],
    pub(crate) zero_point: i32,
    pub(crate) epsilon: f32,
}

/// y ← the normalized rows of y + skip, q ← their levels.
///
/// # Panics
/// When the slices are not of one count of rows.
pub(crate) fn layer_normalize_levels(
    y: &mut [f32],
    q: &mut [u8],
    skip: Option<&[f32]>,
    by: Normalization,
) {
    let size = by.scale.len();
    assert!(by.bias.len() == size && by.inverse_scales.len() == size, "one of each for each place");
    assert!(q.len() == y.len() && skip.is_none_or(|skip| skip.len() == y.len()), "as many rows");
    #[cfg(target_arch = "x86_64")]
    if super::isa() == super::Isa::Avx512 && size.is_multiple_of(LANES) {
        // SAFETY: `isa` found every feature that the function is compiled for, and the sizes were
        // checked above.
        return unsafe { x86::layer_normalize_levels(y, q, skip, by) };
    }
    plain(y, q, skip, by);
}

/// Vectors of partial sums: so many that an addition need not wait for the one before.
const PARTS: usize = 4;

/// The sum of squares of what rows differ from `from` by, or the plain sum.
#[inline(always)]
fn reduce<const FMA: bool, const SQUARES: bool>(row: &[f32], from: f32) -> f32 {
    let mut parts = [[0.0_f32; LANES]; PARTS];
    let mut add = |part: usize, values: &[f32]| {
        for (sum, &value) in parts[part].iter_mut().zip(values) {
            *sum =
                if SQUARES { fma::<FMA>(value - from, value - from, *sum) } else { *sum + value };
        }
    };
    let (wholes, rest) = row.as_chunks::<{ PARTS * LANES }>();
    for whole in wholes {
        for (part, chunk) in whole.as_chunks::<LANES>().0.iter().enumerate() {
            add(part, chunk);
        }
    }
    rest.chunks(LANES).for_each(|chunk| add(0, chunk));
    let [a, b, c, d] = parts;
    sum_lanes(std::array::from_fn(|lane| (a[lane] + b[lane]) + (c[lane] + d[lane])))
}

vectorized! {
    fn plain<FMA>(y: &mut [f32], q: &mut [u8], skip: Option<&[f32]>, by: Normalization<'_>) {
        let size = by.scale.len();
        let (bias, inverse_scales) = (&by.bias[..size], &by.inverse_scales[..size]);
        for (index, row) in y.chunks_exact_mut(size).enumerate() {
            if let Some(skip) = skip {
                for (value, &added) in row.iter_mut().zip(&skip[index * size..][..size]) {
                    *value += added;
                }
            }
            let factor = 1.0 / size as f32;
            let mean = reduce::<FMA, false>(row, 0.0) * factor;
            let variance = reduce::<FMA, true>(row, mean) * factor;
            let inverse = 1.0 / (variance + by.epsilon).sqrt();
            let levels = &mut q[index * size..][..size];
            for i in 0..size {
                row[i] = fma::<FMA>((row[i] - mean) * inverse, by.scale[i], bias[i]);
                levels[i] = level(row[i] * inverse_scales[i], by.zero_point);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    // Every instruction is of this architecture, and its name says so.
    #![allow(clippy::wildcard_imports)]

    use std::arch::x86_64::*;

    use super::{LANES, Normalization, PARTS};

    /// As [`plain`](super::plain), bit for bit.
    ///
    /// # Safety
    /// AVX-512; slices of whole rows, whose size is a multiple of 16.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    pub(super) unsafe fn layer_normalize_levels(
        y: &mut [f32],
        q: &mut [u8],
        skip: Option<&[f32]>,
        by: Normalization,
    ) {
        let size = by.scale.len();
        let factor = 1.0 / size as f32;
        let (least, most) = (_mm512_set1_ps(-1024.0), _mm512_set1_ps(1024.0));
        let zero_points = _mm512_set1_epi32(by.zero_point);
        for (index, row) in y.chunks_exact_mut(size).enumerate() {
            let first = index * size;
            let row = row.as_mut_ptr();
            // SAFETY: all places are those of a row, of which the slices have as many as y.
            unsafe {
                let mut sums = [_mm512_setzero_ps(); PARTS];
                for at in (0..size).step_by(LANES) {
                    let mut value = _mm512_loadu_ps(row.add(at));
                    if let Some(skip) = skip {
                        value =
                            _mm512_add_ps(value, _mm512_loadu_ps(skip.as_ptr().add(first + at)));
                        _mm512_storeu_ps(row.add(at), value);
                    }
                    let sum = &mut sums[part(at, size)];
                    *sum = _mm512_add_ps(*sum, value);
                }
                let mean = _mm512_set1_ps(total(sums) * factor);
                let mut squares = [_mm512_setzero_ps(); PARTS];
                for at in (0..size).step_by(LANES) {
                    let centred = _mm512_sub_ps(_mm512_loadu_ps(row.add(at)), mean);
                    let sum = &mut squares[part(at, size)];
                    *sum = _mm512_fmadd_ps(centred, centred, *sum);
                }
                let variance = total(squares) * factor;
                let inverse = _mm512_set1_ps(1.0 / (variance + by.epsilon).sqrt());
                for at in (0..size).step_by(LANES) {
                    let [scale, bias, inverse_scale] = [by.scale, by.bias, by.inverse_scales];
                    let centred = _mm512_sub_ps(_mm512_loadu_ps(row.add(at)), mean);
                    let scale = _mm512_loadu_ps(scale.as_ptr().add(at));
                    let bias = _mm512_loadu_ps(bias.as_ptr().add(at));
                    let value = _mm512_fmadd_ps(_mm512_mul_ps(centred, inverse), scale, bias);
                    _mm512_storeu_ps(row.add(at), value);
                    let inverse_scale = _mm512_loadu_ps(inverse_scale.as_ptr().add(at));
                    // Of a NaN and another, these two give their second operand.
                    let scaled = _mm512_max_ps(_mm512_mul_ps(value, inverse_scale), least);
                    let rounded = _mm512_cvtps_epi32(_mm512_min_ps(scaled, most));
                    let level = _mm512_add_epi32(rounded, zero_points);
                    let level = _mm512_max_epi32(level, _mm512_setzero_si512());
                    let to = q.as_mut_ptr().add(first + at).cast();
                    _mm_storeu_si128(to, _mm512_cvtusepi32_epi8(level));
                }
            }
        }
    }

    /// Which sum a vector belongs to: the first behind the last whole four.
    #[inline(always)]
    fn part(at: usize, size: usize) -> usize {
        if at < size / (PARTS * LANES) * (PARTS * LANES) { at / LANES % PARTS } else { 0 }
    }

    /// All of them, halves after halves, as [`sum_lanes`](super::sum_lanes) adds.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn total([a, b, c, d]: [__m512; PARTS]) -> f32 {
        let all = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
        let eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn every_path_gives_the_same_bits_as_plain_loops() {
        for (size, rows) in [(1, 3), (7, 2), (16, 3), (48, 2), (64, 1), (80, 3), (384, 5), (400, 2)]
        {
            let (x, skip) = (values(size * rows, 1), values(size * rows, 2));
            let [scale, bias, inverse] = [3, 4, 5].map(|seed| values(size, seed));
            let inverse_scales: Vec<f32> = inverse.iter().map(|x| 40.0 + 30.0 * x).collect();
            let by = Normalization {
                scale: &scale,
                bias: &bias,
                inverse_scales: &inverse_scales,
                zero_point: 117,
                epsilon: 1e-5,
            };
            for skip in [None, Some(&skip[..])] {
                let run = |f: fn(&mut [f32], &mut [u8], Option<&[f32]>, Normalization)| {
                    let (mut y, mut q) = (x.clone(), vec![0; x.len()]);
                    f(&mut y, &mut q, skip, by);
                    (y.into_iter().map(f32::to_bits).collect::<Vec<_>>(), q)
                };
                assert_eq!(run(layer_normalize_levels), run(plain), "{size} × {rows}");
            }
        }
    }

    #[test]
    fn levels_are_those_of_the_definition() {
        let size = 32;
        let (mut y, skip) = (values(size, 8), values(size, 9));
        let sums: Vec<f64> = y.iter().zip(&skip).map(|(a, b)| f64::from(a + b)).collect();
        let mut q = vec![0; size];
        let (scale, bias) = (vec![1.5; size], vec![0.25; size]);
        let inverse_scales = vec![1.0 / 0.03; size];
        let by = Normalization {
            scale: &scale,
            bias: &bias,
            inverse_scales: &inverse_scales,
            zero_point: 100,
            epsilon: 0.0,
        };
        layer_normalize_levels(&mut y, &mut q, Some(&skip), by);
        let mean = sums.iter().sum::<f64>() / size as f64;
        let variance = sums.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / size as f64;
        for (i, sum) in sums.iter().enumerate() {
            let exact = (sum - mean) / variance.sqrt() * 1.5 + 0.25;
            assert!((f64::from(y[i]) - exact).abs() < 1e-5, "{i}: {} {exact}", y[i]);
            let level = (exact / 0.03 + 100.0).clamp(0.0, 255.0);
            assert!((f64::from(q[i]) - level).abs() < 0.501, "{i}: {} {level}", q[i]);
        }
    }

    #[test]
    fn what_is_not_a_number_becomes_the_least_level() {
        let by = Normalization {
            scale: &[1.0; 16],
            bias: &[0.0; 16],
            inverse_scales: &[10.0; 16],
            zero_point: 128,
            epsilon: 1e-5,
        };
        let (mut y, mut q) = ([1.0; 16], [9; 16]);
        y[3] = f32::NAN;
        layer_normalize_levels(&mut y, &mut q, None, by);
        assert_eq!(q, [0; 16]);
    }
}
