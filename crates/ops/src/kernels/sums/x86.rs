//! Sums in registers of x86.
// Every instruction is of this architecture, and its name says so.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use super::{BOUND, Levels, Sums};

/// AVX-512 with VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Vnni(__m512i);

/// The first `count` ≤ 64 bits.
#[inline(always)]
fn mask(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

impl Vnni {
    #[inline(always)]
    unsafe fn rounded(self, scales: *const f32) -> __m512i {
        // SAFETY: the caller has AVX-512, and 16 scales to read.
        unsafe {
            let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(self.0), _mm512_loadu_ps(scales));
            // What is far below becomes the least integer, as far below.
            _mm512_cvtps_epi32(_mm512_min_ps(scaled, _mm512_set1_ps(BOUND)))
        }
    }
}

// SAFETY of all: the caller has the instructions and vouches for the pointers.
impl Sums for Vnni {
    type X = __m512i;
    type W = __m512i;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32, count: usize) {
        // SAFETY: see above.
        unsafe { _mm512_mask_storeu_epi32(to, mask(count) as u16, self.0) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(x: u32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(x as i32) }
    }

    #[inline(always)]
    unsafe fn inputs(from: *const u8) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(self, x: __m512i, w: __m512i) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_dpbusd_epi32(self.0, x, w) })
    }

    #[inline(always)]
    unsafe fn store_levels(self, to: *mut u8, count: usize, scales: *const f32, l: Levels) {
        // SAFETY: see above.
        unsafe {
            let moved = _mm512_add_epi32(self.rounded(scales), _mm512_set1_epi32(l.zero.into()));
            let bounded = _mm512_max_epi32(moved, _mm512_set1_epi32(l.low.into()));
            let bounded = _mm512_min_epi32(bounded, _mm512_set1_epi32(l.high.into()));
            let bytes = _mm512_cvtepi32_epi8(bounded);
            if count >= 16 {
                _mm_storeu_si128(to.cast(), bytes);
            } else {
                _mm_mask_storeu_epi8(to.cast(), mask(count) as u16, bytes);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_block(
        sums: [Self; 4],
        to: *mut u8,
        count: usize,
        scales: *const f32,
        l: Levels,
    ) {
        // SAFETY: see above.
        unsafe {
            let zero = _mm512_set1_epi16(l.zero.into());
            let a = _mm512_packs_epi32(sums[0].rounded(scales), sums[1].rounded(scales.add(16)));
            let b = _mm512_packs_epi32(
                sums[2].rounded(scales.add(32)),
                sums[3].rounded(scales.add(48)),
            );
            let bytes = _mm512_packus_epi16(_mm512_adds_epi16(a, zero), _mm512_adds_epi16(b, zero));
            let bytes = _mm512_max_epu8(bytes, _mm512_set1_epi8(l.low as i8));
            let bytes = _mm512_min_epu8(bytes, _mm512_set1_epi8(l.high as i8));
            if count >= 64 {
                _mm512_storeu_si512(to.cast(), bytes);
            } else if count == 32 {
                _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(bytes));
            } else if count == 16 {
                _mm_storeu_si128(to.cast(), _mm512_castsi512_si128(bytes));
            } else {
                _mm512_mask_storeu_epi8(to.cast(), mask(count), bytes);
            }
        }
    }

    #[inline(always)]
    unsafe fn interleave(to: *mut u8, rows: [*const u8; 4], count: usize) {
        // SAFETY: see above.
        unsafe {
            let load = |row: *const u8| {
                if count >= 64 {
                    _mm512_loadu_si512(row.cast())
                } else {
                    _mm512_maskz_loadu_epi8(mask(count), row.cast())
                }
            };
            let [a, b, c, d] = rows.map(load);
            let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let (next, last) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            _mm512_storeu_si512(to.cast(), _mm512_unpacklo_epi16(low, next));
            _mm512_storeu_si512(to.add(64).cast(), _mm512_unpackhi_epi16(low, next));
            _mm512_storeu_si512(to.add(128).cast(), _mm512_unpacklo_epi16(high, last));
            _mm512_storeu_si512(to.add(192).cast(), _mm512_unpackhi_epi16(high, last));
        }
    }
}

/// AVX2, whose instruction for bytes saturates sums of two products. Where weights are too small
/// for that it is used (`NARROW`); else bytes are widened to 16 bits, those of even and of odd
/// places apart.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const NARROW: bool>(pub(in super::super) [__m256i; 2]);

// No closures around instructions: those are not compiled for the CPU that they are for.
impl<const NARROW: bool> Avx2<NARROW> {
    #[inline(always)]
    unsafe fn half_of_weights(from: *const i8) -> [__m256i; 2] {
        // SAFETY: the caller has AVX2, and 32 weights to read.
        unsafe {
            let w = _mm256_loadu_si256(from.cast());
            if NARROW {
                return [w; 2];
            }
            [_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), _mm256_srai_epi16(w, 8)]
        }
    }

    #[inline(always)]
    unsafe fn half_of_inputs(from: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller has AVX2, and 32 inputs to read.
        unsafe {
            let x = _mm256_loadu_si256(from.cast());
            if NARROW {
                return [x; 2];
            }
            [_mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(x, 8)]
        }
    }

    #[inline(always)]
    unsafe fn half_of_dot(
        self,
        half: usize,
        x: [[__m256i; 2]; 2],
        w: [[__m256i; 2]; 2],
    ) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe {
            if NARROW {
                let pairs = _mm256_maddubs_epi16(x[half][0], w[half][0]);
                let four = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                return _mm256_add_epi32(self.0[half], four);
            }
            let even = _mm256_madd_epi16(x[half][0], w[half][0]);
            let odd = _mm256_madd_epi16(x[half][1], w[half][1]);
            _mm256_add_epi32(self.0[half], _mm256_add_epi32(even, odd))
        }
    }

    #[inline(always)]
    unsafe fn rounded(self, half: usize, scales: *const f32) -> __m256i {
        // SAFETY: the caller has AVX2, and 16 scales to read.
        unsafe {
            let scales = _mm256_loadu_ps(scales.add(half * 8));
            let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(self.0[half]), scales);
            _mm256_cvtps_epi32(_mm256_min_ps(scaled, _mm256_set1_ps(BOUND)))
        }
    }
}

// SAFETY of all: the caller has the instructions and vouches for the pointers.
impl<const NARROW: bool> Sums for Avx2<NARROW> {
    /// Even and odd places of each half, or the bytes as they are, twice.
    type X = [[__m256i; 2]; 2];
    type W = [[__m256i; 2]; 2];

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: see above.
        unsafe {
            let next = from.add(8);
            Self([_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(next.cast())])
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32, count: usize) {
        let mut lanes = [0_i32; 16];
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), self.0[0]);
            _mm256_storeu_si256(lanes.as_mut_ptr().add(8).cast(), self.0[1]);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
        }
    }

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self::W {
        // SAFETY: see above.
        unsafe { [Self::half_of_weights(from), Self::half_of_weights(from.add(32))] }
    }

    #[inline(always)]
    unsafe fn splat(x: u32) -> Self::X {
        // SAFETY: see above.
        unsafe {
            if NARROW {
                return [[_mm256_set1_epi32(x as i32); 2]; 2];
            }
            let x = _mm256_set1_epi32(x as i32);
            let even = _mm256_and_si256(x, _mm256_set1_epi16(0xff));
            [[even, _mm256_srli_epi16(x, 8)]; 2]
        }
    }

    #[inline(always)]
    unsafe fn inputs(from: *const u8) -> Self::X {
        // SAFETY: see above.
        unsafe { [Self::half_of_inputs(from), Self::half_of_inputs(from.add(32))] }
    }

    #[inline(always)]
    unsafe fn dot(self, x: Self::X, w: Self::W) -> Self {
        // SAFETY: see above.
        unsafe { Self([self.half_of_dot(0, x, w), self.half_of_dot(1, x, w)]) }
    }

    #[inline(always)]
    unsafe fn store_levels(self, to: *mut u8, count: usize, scales: *const f32, l: Levels) {
        // SAFETY: see above.
        unsafe {
            // Packing leaves quarters in the order 0, 2, 1, 3 of both halves' fours.
            let words = _mm256_packs_epi32(self.rounded(0, scales), self.rounded(1, scales));
            let words = _mm256_adds_epi16(words, _mm256_set1_epi16(l.zero.into()));
            let words = _mm256_permute4x64_epi64(words, 0b11_01_10_00);
            let bytes = _mm256_packus_epi16(words, words);
            let bytes = _mm256_permute4x64_epi64(bytes, 0b11_01_10_00);
            let bytes = _mm256_castsi256_si128(bytes);
            let bytes = _mm_max_epu8(bytes, _mm_set1_epi8(l.low as i8));
            let bytes = _mm_min_epu8(bytes, _mm_set1_epi8(l.high as i8));
            if count >= 16 {
                _mm_storeu_si128(to.cast(), bytes);
            } else {
                let mut lanes = [0_u8; 16];
                _mm_storeu_si128(lanes.as_mut_ptr().cast(), bytes);
                std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_two_levels(
        sums: [Self; 2],
        to: [*mut u8; 2],
        count: usize,
        scales: *const f32,
        l: Levels,
    ) {
        // SAFETY: see above.
        unsafe {
            let zero = _mm256_set1_epi16(l.zero.into());
            let a = _mm256_packs_epi32(sums[0].rounded(0, scales), sums[0].rounded(1, scales));
            let b = _mm256_packs_epi32(sums[1].rounded(0, scales), sums[1].rounded(1, scales));
            let (a, b) = (_mm256_adds_epi16(a, zero), _mm256_adds_epi16(b, zero));
            // Fours of a and b in the order 0, 2 of each, 1, 3 of each.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order);
            let bytes = _mm256_max_epu8(bytes, _mm256_set1_epi8(l.low as i8));
            let bytes = _mm256_min_epu8(bytes, _mm256_set1_epi8(l.high as i8));
            let halves = [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)];
            for (bytes, to) in halves.into_iter().zip(to) {
                if count >= 16 {
                    _mm_storeu_si128(to.cast(), bytes);
                } else {
                    let mut lanes = [0_u8; 16];
                    _mm_storeu_si128(lanes.as_mut_ptr().cast(), bytes);
                    std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store_block(
        sums: [Self; 4],
        to: *mut u8,
        count: usize,
        scales: *const f32,
        l: Levels,
    ) {
        // SAFETY: see above.
        unsafe {
            let zero = _mm256_set1_epi16(l.zero.into());
            let mut lanes = [0_u8; 64];
            for half in 0..2 {
                let a = sums[0].rounded(half, scales);
                let b = sums[1].rounded(half, scales.add(16));
                let c = sums[2].rounded(half, scales.add(32));
                let d = sums[3].rounded(half, scales.add(48));
                let low = _mm256_adds_epi16(_mm256_packs_epi32(a, b), zero);
                let high = _mm256_adds_epi16(_mm256_packs_epi32(c, d), zero);
                let bytes = _mm256_packus_epi16(low, high);
                let bytes = _mm256_max_epu8(bytes, _mm256_set1_epi8(l.low as i8));
                let bytes = _mm256_min_epu8(bytes, _mm256_set1_epi8(l.high as i8));
                _mm256_storeu_si256(lanes.as_mut_ptr().add(half * 32).cast(), bytes);
            }
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
        }
    }

    #[inline(always)]
    unsafe fn interleave(to: *mut u8, rows: [*const u8; 4], count: usize) {
        // SAFETY: see above.
        unsafe {
            let mut copies = [[0_u8; 64]; 4];
            let mut rows = rows;
            if count < 64 {
                for (row, copy) in rows.iter_mut().zip(&mut copies) {
                    std::ptr::copy_nonoverlapping(*row, copy.as_mut_ptr(), count);
                    *row = copy.as_ptr();
                }
            }
            for half in 0..2 {
                let at = half * 32;
                let a = _mm256_loadu_si256(rows[0].add(at).cast());
                let b = _mm256_loadu_si256(rows[1].add(at).cast());
                let c = _mm256_loadu_si256(rows[2].add(at).cast());
                let d = _mm256_loadu_si256(rows[3].add(at).cast());
                let (low, high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
                let (next, last) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
                let to = to.add(half * 32);
                _mm256_storeu_si256(to.cast(), _mm256_unpacklo_epi16(low, next));
                _mm256_storeu_si256(to.add(64).cast(), _mm256_unpackhi_epi16(low, next));
                _mm256_storeu_si256(to.add(128).cast(), _mm256_unpacklo_epi16(high, last));
                _mm256_storeu_si256(to.add(192).cast(), _mm256_unpackhi_epi16(high, last));
            }
        }
    }
}
