//! A tile of sums by counting bits, with `vpopcntd` of AVX-512.
// SAFETY, for every block below: the caller vouches for the instructions and for the pointers.
#![allow(clippy::undocumented_unsafe_blocks)]
// Every instruction is of this architecture, and its name says so.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::bits::BitColumns;
use super::tile::Left;

/// Sums in a vector.
const LANES: usize = 16;
/// Rows of a tile, at most.
const ROWS: usize = 6;

thread_local! {
    /// The bits of a tile's rows, kept for the next tile.
    static BITS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Whether this CPU counts the bits of its widest registers.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vpopcntdq")
}

/// sums = starts + rows of `left`·columns, of up to four vectors of a panel; false, with nothing
/// done, where the rows have too many levels for it.
///
/// # Safety
/// Needs what [`is_available`] asks for, `rows` rows in `left`, up to six, and room for their sums.
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
pub(super) unsafe fn tile(
    columns: &BitColumns,
    first_column: usize,
    (rows, wide): (usize, usize),
    left: Left,
    starts: &[i32],
    sums: *mut i32,
) -> bool {
    let places = unsafe { places(left, rows) };
    if places > columns.places_max(rows) {
        return false;
    }
    // Where all is zero, one place of zeros.
    let places = places.max(1);
    BITS.with_borrow_mut(|bits| unsafe {
        let groups = columns.groups();
        bits.resize(places as usize * rows * groups, 0);
        let mut totals = [0_i32; ROWS];
        for (row, total) in totals.iter_mut().enumerate().take(rows) {
            *total = spread(left, row, places, &mut bits[row * groups..], rows * groups);
        }
        let block = Block {
            bits: bits.as_ptr(),
            places: places as usize,
            groups,
            panel: columns.panel(first_column),
            starts,
            totals,
            sums,
        };
        match (columns.is_ternary(), rows) {
            (false, 1) => by_width::<1, false>(&block, wide),
            (false, 2) => by_width::<2, false>(&block, wide),
            (false, 3) => by_width::<3, false>(&block, wide),
            (false, 4) => by_width::<4, false>(&block, wide),
            (false, 5) => by_width::<5, false>(&block, wide),
            (false, _) => by_width::<6, false>(&block, wide),
            (true, 1) => by_width::<1, true>(&block, wide),
            (true, 2) => by_width::<2, true>(&block, wide),
            (true, 3) => by_width::<3, true>(&block, wide),
            (true, 4) => by_width::<4, true>(&block, wide),
            (true, 5) => by_width::<5, true>(&block, wide),
            (true, _) => by_width::<6, true>(&block, wide),
        }
    });
    true
}

/// How many bits the largest byte of the rows has.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn places(left: Left, rows: usize) -> u32 {
    let mut all = _mm512_setzero_si512();
    for row in 0..rows {
        for at in (0..left.depth).step_by(64) {
            all = _mm512_or_si512(all, unsafe { bytes(left, row, at) });
        }
    }
    let word = _mm512_reduce_or_epi32(all).cast_unsigned();
    let byte = word.to_ne_bytes().into_iter().fold(0, |all, byte| all | byte);
    u8::BITS - byte.leading_zeros()
}

/// 64 bytes of a row, zeros behind its end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn bytes(left: Left, row: usize, at: usize) -> __m512i {
    let rest = left.depth - at;
    let mask = if rest >= 64 { u64::MAX } else { (1 << rest) - 1 };
    unsafe { _mm512_maskz_loadu_epi8(mask, left.data.add(row * left.stride + at).cast()) }
}

/// Writes the bits of a row, those of each place `stride` words after those of the one before; gives
/// the sum of its bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
unsafe fn spread(left: Left, row: usize, places: u32, bits: &mut [u32], stride: usize) -> i32 {
    let mut total = 0;
    for at in (0..left.depth).step_by(64) {
        let bytes = unsafe { bytes(left, row, at) };
        for place in 0..places {
            let bit = _mm512_set1_epi8(1 << place);
            let mask = _mm512_test_epi8_mask(bytes, bit);
            let to = place as usize * stride + at / 32;
            bits[to] = mask as u32;
            if at + 32 < left.depth {
                bits[to + 1] = (mask >> 32) as u32;
            }
            total += mask.count_ones().cast_signed() << place;
        }
    }
    total
}

/// Bits of rows, and the columns that they meet.
struct Block<'a> {
    /// By place, row and group.
    bits: *const u32,
    places: usize,
    groups: usize,
    panel: *const u32,
    starts: &'a [i32],
    /// The sum of each row.
    totals: [i32; ROWS],
    sums: *mut i32,
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
unsafe fn by_width<const R: usize, const TERNARY: bool>(block: &Block, wide: usize) {
    unsafe {
        match wide {
            1 => count::<R, 1, TERNARY>(block),
            2 => count::<R, 2, TERNARY>(block),
            3 => count::<R, 3, TERNARY>(block),
            _ => count::<R, 4, TERNARY>(block),
        }
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
unsafe fn count<const R: usize, const W: usize, const TERNARY: bool>(block: &Block) {
    unsafe {
        let step = if TERNARY { 2 * W } else { W } * LANES;
        let mut tile = [[_mm512_setzero_si512(); W]; R];
        for place in (0..block.places).rev() {
            let bits = block.bits.add(place * R * block.groups);
            for sum in tile.iter_mut().flatten() {
                *sum = _mm512_add_epi32(*sum, *sum);
            }
            for group in 0..block.groups {
                let from = block.panel.add(group * step);
                let load = |at: usize| _mm512_loadu_epi32(from.add(at * LANES).cast());
                let plus: [__m512i; W] = std::array::from_fn(load);
                for (r, row) in tile.iter_mut().enumerate() {
                    let word = *bits.add(r * block.groups + group);
                    let word = _mm512_set1_epi32(word.cast_signed());
                    for (w, sum) in row.iter_mut().enumerate() {
                        let ones = _mm512_popcnt_epi32(_mm512_and_si512(word, plus[w]));
                        *sum = _mm512_add_epi32(*sum, ones);
                        if TERNARY {
                            let minus = _mm512_and_si512(word, load(W + w));
                            *sum = _mm512_sub_epi32(*sum, _mm512_popcnt_epi32(minus));
                        }
                    }
                }
            }
        }
        for (r, row) in tile.iter().enumerate() {
            for (w, &sum) in row.iter().enumerate() {
                let start = _mm512_loadu_epi32(block.starts.as_ptr().add(w * LANES));
                let sum = if TERNARY {
                    sum
                } else {
                    let total = _mm512_set1_epi32(block.totals[r]);
                    _mm512_sub_epi32(_mm512_add_epi32(sum, sum), total)
                };
                let to = block.sums.add((r * W + w) * LANES);
                _mm512_storeu_epi32(to, _mm512_add_epi32(start, sum));
            }
        }
    }
}
