//! Rows of u8 that come in, and results that go out.

use super::{ROUND, ROWS};
use crate::kernels::vectorized;

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

    /// out = sums·factor, rows of `size`.
    pub(super) fn rescale<FMA>(
        out: &mut [f32],
        stride: usize,
        sums: &[i32],
        columns: usize,
        size: usize,
        factor: f32,
    ) {
        for (row, sums) in sums.chunks_exact(columns).enumerate() {
            for (out, &sum) in out[row * stride..][..size].iter_mut().zip(sums) {
                *out = sum as f32 * factor;
            }
        }
    }

    /// out = clamp(round(sums·(factor / scale)) + `zero_point`), rows of `size`, by one scale or one
    /// for each place.
    pub(super) fn requantize<FMA>(
        out: &mut [u8],
        stride: usize,
        sums: &[i32],
        columns: usize,
        size: usize,
        factor: f32,
        scales: &[f32],
        zero_point: i32,
    ) {
        let (low, high) = (-zero_point as f32, (255 - zero_point) as f32);
        let level = |sum: i32, factor: f32| {
            let exact = sum as f32 * factor;
            let bounded = if exact > low { exact } else { low };
            let bounded = if bounded < high { bounded } else { high };
            ((bounded + ROUND).to_bits() as i32 + zero_point) as u8
        };
        for (row, sums) in sums.chunks_exact(columns).enumerate() {
            let results = out[row * stride..][..size].iter_mut().zip(sums);
            if let [scale] = *scales {
                let factor = factor / scale;
                results.for_each(|(out, &sum)| *out = level(sum, factor));
            } else {
                for ((out, &sum), &scale) in results.zip(scales) {
                    *out = level(sum, factor / scale);
                }
            }
        }
    }
}
