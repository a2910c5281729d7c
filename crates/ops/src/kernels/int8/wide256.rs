//! The tile of AVX2 for any columns: bytes of both sides are widened to 16 bits, of which one
//! instruction multiplies two each and adds the products up in 32.
//!
//! Rows are widened a part at a time, once for all vectors of the panel. A register holds four columns,
//! and of each the sums of the first and of the last two of every four rows of the weights.
// Every instruction is of this architecture, and its name says so.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::unrolled;
use super::tile::Left;

/// Vectors of eight columns in a panel.
pub(super) const WIDE: usize = 4;
/// Groups of four bytes of a row that are widened together.
const GROUPS: usize = 64;

/// sums = starts + left·weights, `R` rows of `wide` ≤ [`WIDE`] vectors.
///
/// # Safety
/// The CPU has AVX2 and FMA. A row of `left` has its depth, the panel a group of four for every four of
/// them begun, `starts` `wide` vectors, `sums` room for `R` rows of them.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tile<const R: usize>(
    left: Left,
    weights: *const i8,
    wide: usize,
    starts: &[i32],
    sums: *mut i32,
) {
    let mut held = [[[_mm256_setzero_si256(); 2]; R]; WIDE];
    let mut rows = [[const { MaybeUninit::<i64>::uninit() }; GROUPS]; R];
    let groups = left.depth.div_ceil(4);
    // SAFETY: the caller vouches for the places; rows are written up to the last group before they
    // are read.
    unsafe {
        for first in (0..groups).step_by(GROUPS) {
            let count = GROUPS.min(groups - first);
            let bytes = (left.depth - first * 4).min(GROUPS * 4);
            for (r, row) in rows.iter_mut().enumerate() {
                widen(row.as_mut_ptr().cast(), left.data.add(r * left.stride + first * 4), bytes);
            }
            let rows = rows.as_ptr().cast::<i64>();
            for (w, held) in held.iter_mut().enumerate().take(wide) {
                let mut tile = *held;
                let mut from = weights.add((first * wide + w) * 32);
                for group in 0..count {
                    let low = _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast()));
                    let high = _mm256_cvtepi8_epi16(_mm_loadu_si128(from.add(16).cast()));
                    unrolled!(r < R, {
                        let x = _mm256_set1_epi64x(*rows.add(r * GROUPS + group));
                        tile[r][0] = _mm256_add_epi32(tile[r][0], _mm256_madd_epi16(x, low));
                        tile[r][1] = _mm256_add_epi32(tile[r][1], _mm256_madd_epi16(x, high));
                    });
                    from = from.add(wide * 32);
                }
                *held = tile;
            }
        }
        for (w, held) in held.iter().enumerate().take(wide) {
            let start = _mm256_loadu_si256(starts[w * 8..].as_ptr().cast());
            for (r, [low, high]) in held.iter().enumerate() {
                // Columns 0, 1, 4, 5 and 2, 3, 6, 7.
                let both = _mm256_hadd_epi32(*low, *high);
                let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
                let to = sums.add((r * wide + w) * 8);
                _mm256_storeu_si256(to.cast(), _mm256_add_epi32(start, both));
            }
        }
    }
}

/// `count` bytes, and zeros up to the next sixteen.
///
/// # Safety
/// The CPU has AVX2; `from` is readable for `count` bytes, `to` writable for the next multiple of
/// sixteen numbers.
#[inline(always)]
unsafe fn widen(to: *mut i16, from: *const u8, count: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        for at in (0..count / 16 * 16).step_by(16) {
            let bytes = _mm_loadu_si128(from.add(at).cast());
            _mm256_storeu_si256(to.add(at).cast(), _mm256_cvtepu8_epi16(bytes));
        }
        let rest = count % 16;
        if rest > 0 {
            let mut bytes = [0_u8; 16];
            std::ptr::copy_nonoverlapping(from.add(count - rest), bytes.as_mut_ptr(), rest);
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            _mm256_storeu_si256(to.add(count - rest).cast(), _mm256_cvtepu8_epi16(bytes));
        }
    }
}
