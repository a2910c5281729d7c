//! Registers of x86: AVX-512 with VNNI, AVX2 with VNNI, AVX2 alone.
// SAFETY, for every block below: the caller vouches for the instructions and for the pointers.
#![allow(clippy::undocumented_unsafe_blocks)]
// Every instruction is of this architecture, and its name says so.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use super::bits::BitColumns;
use super::tile::{Left, tile_of};
use super::vector::{Floats, Sums};
use super::{bit_tile, wide256};

/// Sixteen sums, by `vpdpbusd` of AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Vnni512(__m512i);

impl Sums for Vnni512 {
    const LANES: usize = 16;
    const ROWS: usize = 6;
    const WIDE: usize = 4;

    tile_of!(Vnni512, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma");

    #[inline(always)]
    unsafe fn count_bits(
        columns: &BitColumns,
        first_column: usize,
        size: (usize, usize),
        left: Left,
        starts: &[i32],
        sums: *mut i32,
    ) -> bool {
        // Columns are held as bits only where this CPU counts them.
        unsafe { bit_tile::tile(columns, first_column, size, left, starts, sums) }
    }

    type Left = __m512i;
    type Right = __m512i;
    type Floats = __m512;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        Self(unsafe { _mm512_loadu_epi32(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        unsafe { _mm512_storeu_epi32(to, self.0) }
    }

    #[inline(always)]
    unsafe fn left(group: u32) -> __m512i {
        unsafe { _mm512_set1_epi32(group.cast_signed()) }
    }

    #[inline(always)]
    unsafe fn right(from: *const i8) -> __m512i {
        unsafe { _mm512_loadu_epi8(from) }
    }

    #[inline(always)]
    unsafe fn dot(self, left: __m512i, right: __m512i) -> Self {
        Self(unsafe { _mm512_dpbusd_epi32(self.0, left, right) })
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const i8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at) };
    }

    #[inline(always)]
    unsafe fn floats(self) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(self.0) }
    }
}

impl Floats for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { _mm512_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { _mm512_div_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        unsafe { _mm512_fmadd_ps(self, a, b) }
    }

    // Of a NaN and another, these two give their second operand.
    #[inline(always)]
    unsafe fn at_least(self, bound: Self) -> Self {
        unsafe { _mm512_max_ps(self, bound) }
    }

    #[inline(always)]
    unsafe fn at_most(self, bound: Self) -> Self {
        unsafe { _mm512_min_ps(self, bound) }
    }

    #[inline(always)]
    unsafe fn clipped(self, low: Self, high: Self) -> Self {
        unsafe { _mm512_min_ps(high, _mm512_max_ps(low, self)) }
    }

    #[inline(always)]
    unsafe fn unit_beyond(self, end: Self, inside: Self) -> Self {
        unsafe {
            let beyond = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_abs_ps(self), end);
            let sign = _mm512_and_ps(self, _mm512_set1_ps(-0.0));
            _mm512_mask_or_ps(inside, beyond, sign, _mm512_set1_ps(1.0))
        }
    }

    #[inline(always)]
    unsafe fn store_levels(self, zero_point: i32, to: *mut u8) {
        unsafe {
            let rounded = _mm512_cvtps_epi32(self);
            let levels = _mm512_add_epi32(rounded, _mm512_set1_epi32(zero_point));
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(levels));
        }
    }

    /// Four vectors in one store: narrowed together, which mixes their quarters, and put in order.
    #[inline(always)]
    unsafe fn store_levels_of<const W: usize>(x: [Self; W], zero_point: i32, to: *mut u8) {
        unsafe {
            let [a, b, c, d] = x.as_slice() else {
                for (i, x) in x.into_iter().enumerate() {
                    x.store_levels(zero_point, to.add(i * Self::LANES));
                }
                return;
            };
            let ab = _mm512_packs_epi32(_mm512_cvtps_epi32(*a), _mm512_cvtps_epi32(*b));
            let cd = _mm512_packs_epi32(_mm512_cvtps_epi32(*c), _mm512_cvtps_epi32(*d));
            let zero_points = _mm512_set1_epi16(zero_point as i16);
            let (ab, cd) = (_mm512_add_epi16(ab, zero_points), _mm512_add_epi16(cd, zero_points));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd));
            _mm512_storeu_si512(to.cast(), bytes);
        }
    }
}

/// What the two ways to sum in 256 bits share.
macro_rules! sums_of_256 {
    ($rows:literal, $wide:expr) => {
        const LANES: usize = 8;
        const ROWS: usize = $rows;
        const WIDE: usize = $wide;

        type Floats = __m256;

        #[inline(always)]
        unsafe fn load(from: *const i32) -> Self {
            Self(unsafe { _mm256_loadu_si256(from.cast()) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut i32) {
            unsafe { _mm256_storeu_si256(to.cast(), self.0) }
        }

        #[inline(always)]
        unsafe fn prefetch(at: *const i8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at) };
        }

        #[inline(always)]
        unsafe fn floats(self) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(self.0) }
        }
    };
}

/// Both sides as they are, for instructions that take bytes.
macro_rules! bytes_of_256 {
    () => {
        type Left = __m256i;
        type Right = __m256i;

        #[inline(always)]
        unsafe fn left(group: u32) -> __m256i {
            unsafe { _mm256_set1_epi32(group.cast_signed()) }
        }

        #[inline(always)]
        unsafe fn right(from: *const i8) -> __m256i {
            unsafe { _mm256_loadu_si256(from.cast()) }
        }
    };
}

/// Eight sums, by `vpdpbusd` of AVX-VNNI; or, for tests on CPUs without it, in the encoding of
/// AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Vnni256<const EVEX: bool>(__m256i);

impl<const EVEX: bool> Sums for Vnni256<EVEX> {
    sums_of_256!(6, 2);

    bytes_of_256!();

    #[inline(always)]
    unsafe fn dot(self, left: __m256i, right: __m256i) -> Self {
        Self(unsafe {
            if EVEX {
                _mm256_dpbusd_epi32(self.0, left, right)
            } else {
                _mm256_dpbusd_avx_epi32(self.0, left, right)
            }
        })
    }
}

/// Eight sums, by `vpmaddubsw`, whose sums of two products have 16 bits: for columns whose pairs of
/// neighbours cannot leave them.
#[derive(Clone, Copy)]
pub(super) struct Narrow256(__m256i);

impl Sums for Narrow256 {
    sums_of_256!(4, 2);
    tile_of!(Narrow256, "avx2,fma");

    bytes_of_256!();

    #[inline(always)]
    unsafe fn dot(self, left: __m256i, right: __m256i) -> Self {
        unsafe {
            let pairs = _mm256_maddubs_epi16(left, right);
            let four = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            Self(_mm256_add_epi32(self.0, four))
        }
    }
}

/// Eight sums, by products widened to 16 bits, whose sums of two fit 32: `vpmaddubsw` would
/// saturate at 16. Each side is held as its even and its odd bytes.
#[derive(Clone, Copy)]
pub(super) struct Wide256(__m256i);

impl Sums for Wide256 {
    sums_of_256!(6, wide256::WIDE);

    #[inline(always)]
    unsafe fn tile<const R: usize, const W: usize>(
        left: Left,
        weights: *const i8,
        starts: &[i32],
        sums: *mut i32,
    ) {
        unsafe { wide256::tile::<R>(left, weights, W, starts, sums) }
    }

    type Left = [__m256i; 2];
    type Right = [__m256i; 2];

    #[inline(always)]
    unsafe fn left(group: u32) -> [__m256i; 2] {
        unsafe {
            let bytes = _mm256_set1_epi32(group.cast_signed());
            [_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(bytes)]
        }
    }

    #[inline(always)]
    unsafe fn right(from: *const i8) -> [__m256i; 2] {
        unsafe {
            let bytes = _mm256_loadu_si256(from.cast());
            [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes)), _mm256_srai_epi16::<8>(bytes)]
        }
    }

    #[inline(always)]
    unsafe fn dot(self, left: [__m256i; 2], right: [__m256i; 2]) -> Self {
        unsafe {
            let even = _mm256_madd_epi16(left[0], right[0]);
            let odd = _mm256_madd_epi16(left[1], right[1]);
            Self(_mm256_add_epi32(self.0, _mm256_add_epi32(even, odd)))
        }
    }
}

impl Floats for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { _mm256_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { _mm256_div_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        unsafe { _mm256_fmadd_ps(self, a, b) }
    }

    // Of a NaN and another, these two give their second operand.
    #[inline(always)]
    unsafe fn at_least(self, bound: Self) -> Self {
        unsafe { _mm256_max_ps(self, bound) }
    }

    #[inline(always)]
    unsafe fn at_most(self, bound: Self) -> Self {
        unsafe { _mm256_min_ps(self, bound) }
    }

    #[inline(always)]
    unsafe fn clipped(self, low: Self, high: Self) -> Self {
        unsafe { _mm256_min_ps(high, _mm256_max_ps(low, self)) }
    }

    #[inline(always)]
    unsafe fn unit_beyond(self, end: Self, inside: Self) -> Self {
        unsafe {
            let sign = _mm256_and_ps(self, _mm256_set1_ps(-0.0));
            let beyond = _mm256_cmp_ps::<_CMP_GT_OQ>(_mm256_xor_ps(self, sign), end);
            let unit = _mm256_or_ps(sign, _mm256_set1_ps(1.0));
            _mm256_blendv_ps(inside, unit, beyond)
        }
    }

    #[inline(always)]
    unsafe fn store_levels(self, zero_point: i32, to: *mut u8) {
        unsafe {
            let rounded = _mm256_cvtps_epi32(self);
            let levels = _mm256_add_epi32(rounded, _mm256_set1_epi32(zero_point));
            let halves = [_mm256_castsi256_si128(levels), _mm256_extracti128_si256::<1>(levels)];
            // Within 0..=255, so that neither narrowing saturates.
            let words = _mm_packus_epi32(halves[0], halves[1]);
            _mm_storel_epi64(to.cast(), _mm_packus_epi16(words, words));
        }
    }
}
