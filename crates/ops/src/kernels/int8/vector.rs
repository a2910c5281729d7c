//! What the tile and its epilogue ask of a vector register, and the answer without one.

use super::bits::BitColumns;
use super::tile::{Left, tile};

/// Sums of 32 bits side by side.
///
/// # Safety
/// Calling any function needs the instruction set that the type stands for; pointers must be
/// readable (writable) for [`LANES`](Self::LANES) values.
pub(super) trait Sums: Copy {
    /// Sums in a vector.
    const LANES: usize;
    /// Rows that a tile has room for in registers, beside [`WIDE`](Self::WIDE) vectors a row.
    const ROWS: usize;
    /// Vectors in a row of a whole panel.
    const WIDE: usize;
    /// What [`left`](Self::left) takes away from every byte.
    const LEFT_OFFSET: i32 = 0;

    /// Four u8 of a row, spread over all lanes.
    type Left: Copy;
    /// Four i8 of each column.
    type Right: Copy;
    type Floats: Floats;

    unsafe fn load(from: *const i32) -> Self;
    unsafe fn store(self, to: *mut i32);
    unsafe fn left(group: u32) -> Self::Left;
    unsafe fn right(from: *const i8) -> Self::Right;
    /// self + Σ of the four products of each lane, exact modulo 2³².
    unsafe fn dot(self, left: Self::Left, right: Self::Right) -> Self;
    unsafe fn floats(self) -> Self::Floats;
    /// Asks for the line of the cache at an address, which need not be readable.
    #[inline(always)]
    unsafe fn prefetch(_at: *const i8) {}
    /// The sums of some rows, and vectors of a row, by counting bits; false, with nothing done, where
    /// bytes are faster.
    #[inline(always)]
    unsafe fn count_bits(
        _columns: &BitColumns,
        _first_column: usize,
        _size: (usize, usize),
        _left: Left,
        _starts: &[i32],
        _sums: *mut i32,
    ) -> bool {
        false
    }
    /// sums = starts + left·weights, `R` rows of `W` vectors.
    #[inline(always)]
    unsafe fn tile<const R: usize, const W: usize>(
        left: Left,
        weights: *const i8,
        starts: &[i32],
        sums: *mut i32,
    ) {
        // SAFETY: as the caller's.
        unsafe { tile::<Self, R, W>(left, weights, starts, sums) }
    }
}

/// As many f32 as a vector has sums. Every function gives the same bits on every CPU; `fma` rounds
/// once everywhere.
///
/// # Safety
/// As that of [`Sums`].
pub(super) trait Floats: Copy {
    /// Floats in a vector.
    const LANES: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// self·a + b.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// The greater (lesser) of both; the bound where `self` is NaN.
    unsafe fn at_least(self, bound: Self) -> Self;
    unsafe fn at_most(self, bound: Self) -> Self;
    /// Within low..=high; NaN stays.
    unsafe fn clipped(self, low: Self, high: Self) -> Self;
    /// `inside` where |self| ≤ end (or NaN), else ±1 with the sign of `self`.
    unsafe fn unit_beyond(self, end: Self, inside: Self) -> Self;
    /// Rounds half to even, adds the zero point and writes bytes; the results lie within 0..=255.
    unsafe fn store_levels(self, zero_point: i32, to: *mut u8);
    /// As [`store_levels`](Self::store_levels), of vectors side by side.
    #[inline(always)]
    unsafe fn store_levels_of<const W: usize>(x: [Self; W], zero_point: i32, to: *mut u8) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: as the caller's.
            unsafe { x.store_levels(zero_point, to.add(i * Self::LANES)) };
        }
    }
}

/// Sums as an array, for CPUs without vectors of their own here.
#[derive(Clone, Copy)]
pub(super) struct Portable([i32; 8]);

#[derive(Clone, Copy)]
pub(super) struct PortableFloats([f32; 8]);

impl Sums for Portable {
    const LANES: usize = 8;
    const ROWS: usize = 2;
    const WIDE: usize = 2;

    type Left = [i32; 4];
    type Right = [[i8; 4]; 8];
    type Floats = PortableFloats;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: the caller's pointer is readable for 8 values.
        Self(unsafe { from.cast::<[i32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: the caller's pointer is writable for 8 values.
        unsafe { to.cast::<[i32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn left(group: u32) -> [i32; 4] {
        group.to_ne_bytes().map(i32::from)
    }

    #[inline(always)]
    unsafe fn right(from: *const i8) -> Self::Right {
        // SAFETY: the caller's pointer is readable for 4 bytes of 8 columns.
        unsafe { from.cast::<[[i8; 4]; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn dot(self, left: [i32; 4], right: Self::Right) -> Self {
        let mut sums = self.0;
        for (sum, column) in sums.iter_mut().zip(right) {
            let [a, b, c, d] = column.map(i32::from);
            // Each pair is below 2¹⁷, and the sum of a row may wrap as in the instruction.
            let four = left[0] * a + left[1] * b + (left[2] * c + left[3] * d);
            *sum = sum.wrapping_add(four);
        }
        Self(sums)
    }

    #[inline(always)]
    unsafe fn floats(self) -> PortableFloats {
        PortableFloats(self.0.map(|sum| sum as f32))
    }
}

impl PortableFloats {
    #[inline(always)]
    fn each(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Floats for PortableFloats {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is readable for 8 values.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is writable for 8 values.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.each(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.each(other, |a, b| a / b)
    }

    // One rounding, though slow where the CPU has no instruction: a vector may not depend on it.
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(a.0[i], b.0[i])))
    }

    #[inline(always)]
    unsafe fn at_least(self, bound: Self) -> Self {
        self.each(bound, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn at_most(self, bound: Self) -> Self {
        self.each(bound, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn clipped(self, low: Self, high: Self) -> Self {
        let raised = self.each(low, |a, low| if a < low { low } else { a });
        raised.each(high, |a, high| if a > high { high } else { a })
    }

    #[inline(always)]
    unsafe fn unit_beyond(self, end: Self, inside: Self) -> Self {
        let of = |i: usize| self.0[i].abs() > end.0[i];
        let unit = |i: usize| if of(i) { 1.0_f32.copysign(self.0[i]) } else { inside.0[i] };
        Self(std::array::from_fn(unit))
    }

    #[inline(always)]
    unsafe fn store_levels(self, zero_point: i32, to: *mut u8) {
        let level = |x: f32| (x.round_ties_even() as i32 + zero_point) as u8;
        // SAFETY: the caller's pointer is writable for 8 values.
        unsafe { to.cast::<[u8; 8]>().write_unaligned(self.0.map(level)) }
    }
}
