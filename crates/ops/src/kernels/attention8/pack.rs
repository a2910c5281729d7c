//! K and V laid out for the products, once for each head of a call.

use super::{Path, Rows8};
use crate::kernels::vectorized;

use super::rows::sum_rows;

/// How many keys there are, and to how many they are padded.
pub(super) struct Packing {
    pub(super) path: Path,
    pub(super) keys: usize,
    pub(super) padded_keys: usize,
}

impl Packing {
    /// K as [depth / group, keys, group], of a depth that is padded.
    pub(super) fn keys(&self, packed: &mut [u8], key: Rows8, [size, padded]: [usize; 2]) {
        let columns = self.padded_keys;
        if self.path.is_bytes() {
            let packed: &mut [[u8; 4]] = bytemuck::cast_slice_mut(&mut packed[..padded * columns]);
            let taken = transpose_keys(packed, key, self.keys, size, columns);
            pack_key_bytes(packed, key.data, key.stride, self.keys, size, columns, taken);
        } else {
            let packed = bytemuck::cast_slice_mut(&mut packed[..padded * columns * 2]);
            pack_key_pairs(packed, key.data, key.stride, self.keys, size, columns);
        }
    }

    /// -zq times the sum of each key.
    pub(super) fn key_starts(&self, starts: &mut [i32], key: Rows8, size: usize, query_zero: u8) {
        starts.fill(0);
        let starts = &mut starts[..self.keys];
        sum_rows(starts, key.data, key.stride, size);
        let offset = self.path.offset() * size as i32;
        scale_sums(starts, -i32::from(query_zero), offset);
    }

    /// V as [keys / group, columns, group], padded by zeros.
    pub(super) fn values(&self, packed: &mut [u8], value: Rows8, [size, columns]: [usize; 2]) {
        let row = |key: usize| {
            if key < self.keys { &value.data[key * value.stride..][..size] } else { &[] }
        };
        let count = self.padded_keys * columns;
        if self.path.is_bytes() {
            let packed: &mut [[u8; 4]] = bytemuck::cast_slice_mut(&mut packed[..count]);
            for (step, out) in packed.chunks_exact_mut(columns).enumerate() {
                let rows = [0, 1, 2, 3].map(|i| row(4 * step + i));
                let taken = interleave(out, rows);
                pack_value_bytes(
                    &mut out[taken..],
                    rows.map(|row| row.get(taken..).unwrap_or(&[])),
                );
            }
        } else {
            let packed: &mut [[i16; 2]] = bytemuck::cast_slice_mut(&mut packed[..count * 2]);
            for (step, out) in packed.chunks_exact_mut(columns).enumerate() {
                pack_value_pairs(out, [0, 1].map(|i| row(2 * step + i)));
            }
        }
    }
}

/// Packs as many keys from the first on as it can, all of their depth, and says how many those are.
#[cfg(target_arch = "x86_64")]
fn transpose_keys(
    packed: &mut [[u8; 4]],
    key: Rows8,
    keys: usize,
    size: usize,
    columns: usize,
) -> usize {
    use std::arch::x86_64::{
        __m128i, _mm_loadu_si128, _mm_set1_epi8, _mm_storeu_si128, _mm_unpackhi_epi32,
        _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64, _mm_xor_si128,
    };
    const BYTES: usize = size_of::<__m128i>();
    // Depth that is padded is written as zeros by the loop for all shapes.
    if !size.is_multiple_of(BYTES) || packed.len() != size / 4 * columns {
        return 0;
    }
    let taken = keys / 4 * 4;
    for first in (0..taken).step_by(4) {
        let rows = [0, 1, 2, 3].map(|i| &key.data[(first + i) * key.stride..][..size]);
        for at in (0..size).step_by(BYTES) {
            let step = at / 4;
            let place = step * columns + first;
            assert!(first + 4 <= columns && place + 3 * columns + 4 <= packed.len());
            // SAFETY: every x86-64 has the instructions; a row has 16 bytes from `at` on, and the
            // four places lie within the packed keys, as was checked.
            unsafe {
                let flip = _mm_set1_epi8(-128);
                let load = |row: &[u8]| _mm_loadu_si128(row.as_ptr().add(at).cast());
                let [a, b, c, d] = rows.map(|row| _mm_xor_si128(load(row), flip));
                let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
                let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
                let groups = [
                    _mm_unpacklo_epi64(ab, cd),
                    _mm_unpackhi_epi64(ab, cd),
                    _mm_unpacklo_epi64(ab_high, cd_high),
                    _mm_unpackhi_epi64(ab_high, cd_high),
                ];
                for (group, four) in groups.into_iter().enumerate() {
                    let to = packed.as_mut_ptr().add(place + group * columns);
                    _mm_storeu_si128(to.cast(), four);
                }
            }
        }
    }
    taken
}

#[cfg(not(target_arch = "x86_64"))]
fn transpose_keys(_: &mut [[u8; 4]], _: Rows8, _: usize, _: usize, _: usize) -> usize {
    0
}

/// Puts bytes of four rows beside each other, of as many columns as it can, and says of how many.
#[cfg(target_arch = "x86_64")]
fn interleave(out: &mut [[u8; 4]], rows: [&[u8]; 4]) -> usize {
    use std::arch::x86_64::{
        __m128i, _mm_loadu_si128, _mm_set1_epi8, _mm_storeu_si128, _mm_unpackhi_epi8,
        _mm_unpackhi_epi16, _mm_unpacklo_epi8, _mm_unpacklo_epi16, _mm_xor_si128,
    };
    const BYTES: usize = size_of::<__m128i>();
    let size = rows.iter().map(|row| row.len()).min().unwrap_or(0).min(out.len());
    let taken = size / BYTES * BYTES;
    for at in (0..taken).step_by(BYTES) {
        // SAFETY: every x86-64 has the instructions; each row, and the result, has 16 places from
        // `at` on.
        unsafe {
            let flip = _mm_set1_epi8(-128);
            let load = |row: &[u8]| _mm_loadu_si128(row.as_ptr().add(at).cast());
            let [a, b, c, d] = rows.map(|row| _mm_xor_si128(load(row), flip));
            let (ab, cd) = (_mm_unpacklo_epi8(a, b), _mm_unpacklo_epi8(c, d));
            let (ab_high, cd_high) = (_mm_unpackhi_epi8(a, b), _mm_unpackhi_epi8(c, d));
            let fours = [
                _mm_unpacklo_epi16(ab, cd),
                _mm_unpackhi_epi16(ab, cd),
                _mm_unpacklo_epi16(ab_high, cd_high),
                _mm_unpackhi_epi16(ab_high, cd_high),
            ];
            for (index, four) in fours.into_iter().enumerate() {
                _mm_storeu_si128(out.as_mut_ptr().add(at + index * 4).cast(), four);
            }
        }
    }
    taken
}

#[cfg(not(target_arch = "x86_64"))]
fn interleave(_: &mut [[u8; 4]], _: [&[u8]; 4]) -> usize {
    0
}

vectorized! {
    /// sums = factor·(sums − offset)
    fn scale_sums<FMA>(sums: &mut [i32], factor: i32, offset: i32) {
        for sum in sums {
            *sum = factor * (*sum - offset);
        }
    }

    /// From row `taken` on.
    fn pack_key_bytes<FMA>(
        packed: &mut [[u8; 4]],
        data: &[u8],
        stride: usize,
        rows: usize,
        size: usize,
        columns: usize,
        taken: usize,
    ) {
        for row in taken..columns {
            let from = if row < rows { &data[row * stride..][..size] } else { &[] };
            let (groups, rest) = from.as_chunks::<4>();
            for (step, &group) in groups.iter().enumerate() {
                let flipped = u32::from_ne_bytes(group) ^ 0x8080_8080;
                packed[step * columns + row] = flipped.to_ne_bytes();
            }
            for step in groups.len()..packed.len() / columns {
                let mut group = [0; 4];
                if step == groups.len() {
                    group[..rest.len()].copy_from_slice(rest);
                    group[..rest.len()].iter_mut().for_each(|level| *level ^= 128);
                }
                packed[step * columns + row] = group;
            }
        }
    }

    fn pack_key_pairs<FMA>(
        packed: &mut [[i16; 2]],
        data: &[u8],
        stride: usize,
        rows: usize,
        size: usize,
        columns: usize,
    ) {
        for row in 0..columns {
            let from = if row < rows { &data[row * stride..][..size] } else { &[] };
            for (step, out) in packed[row..].iter_mut().step_by(columns).enumerate() {
                let at = |i: usize| i16::from(from.get(2 * step + i).copied().unwrap_or(0));
                *out = [at(0), at(1)];
            }
        }
    }

    fn pack_value_bytes<FMA>(out: &mut [[u8; 4]], rows: [&[u8]; 4]) {
        let size = rows[0].len();
        if rows.iter().all(|row| row.len() == size) {
            let [a, b, c, d] = rows;
            let (b, c, d) = (&b[..size], &c[..size], &d[..size]);
            let (inside, behind) = out.split_at_mut(size);
            for (i, out) in inside.iter_mut().enumerate() {
                *out = [a[i] ^ 128, b[i] ^ 128, c[i] ^ 128, d[i] ^ 128];
            }
            behind.fill([0; 4]);
        } else {
            for (i, out) in out.iter_mut().enumerate() {
                *out = rows.map(|row| row.get(i).map_or(0, |level| level ^ 128));
            }
        }
    }

    fn pack_value_pairs<FMA>(out: &mut [[i16; 2]], rows: [&[u8]; 2]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = rows.map(|row| i16::from(row.get(i).copied().unwrap_or(0)));
        }
    }
}
