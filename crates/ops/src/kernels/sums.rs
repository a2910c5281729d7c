//! Sixteen i32 sums of u8·i8 products side by side: one register of AVX-512, two of AVX2, an array
//! elsewhere. Every operation gives the same integers on every CPU: no product saturates.

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Vnni};

/// How sums become u8 levels: clamp(round(sum · scale) + zero, low, high), half to even.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Levels {
    pub(crate) zero: u8,
    pub(crate) low: u8,
    pub(crate) high: u8,
}

impl Levels {
    /// All of them, with a zero point of 0.
    pub(crate) const ALL: Self = Self { zero: 0, low: 0, high: 255 };
}

/// Scaled sums are bounded by this before they become integers again; it lies beyond all levels.
const BOUND: f32 = 32_000.0;

/// Of 64 levels that are stored together, where lane `lane` of vector `vector` goes: the order in
/// which packing four vectors of i32 to one of u8 leaves them.
pub(crate) const fn place_in_block(vector: usize, lane: usize) -> usize {
    lane / 4 * 16 + vector * 4 + lane % 4
}

/// # Safety
/// Calling any function needs the instruction set that the type stands for; pointers must be
/// readable or writable for what the function names.
pub(super) trait Sums: Copy {
    /// Four neighbouring inputs for each lane.
    type X: Copy;
    /// Four weights for each lane.
    type W: Copy;

    /// 16 values.
    unsafe fn load(from: *const i32) -> Self;
    /// The first `count` ≤ 16 sums.
    unsafe fn store(self, to: *mut i32, count: usize);
    /// 64 weights: four for each lane.
    unsafe fn weights(from: *const i8) -> Self::W;
    /// The same four inputs, the first in the lowest byte, for each lane.
    unsafe fn splat(x: u32) -> Self::X;
    /// 64 inputs: four for each lane.
    unsafe fn inputs(from: *const u8) -> Self::X;
    /// self + Σ x·w of each lane.
    unsafe fn dot(self, x: Self::X, w: Self::W) -> Self;
    /// `count` ≤ 16 levels, one of 16 scales for each.
    unsafe fn store_levels(self, to: *mut u8, count: usize, scales: *const f32, levels: Levels);
    /// [`store_levels`](Self::store_levels) of two pixels.
    #[inline(always)]
    unsafe fn store_two_levels(
        sums: [Self; 2],
        to: [*mut u8; 2],
        count: usize,
        scales: *const f32,
        levels: Levels,
    ) {
        for (sums, to) in sums.into_iter().zip(to) {
            // SAFETY: the caller's promise.
            unsafe { sums.store_levels(to, count, scales, levels) };
        }
    }
    /// `count` ≤ 64 levels in the order of [`place_in_block`], as are the 64 scales.
    unsafe fn store_block(
        sums: [Self; 4],
        to: *mut u8,
        count: usize,
        scales: *const f32,
        levels: Levels,
    );
    /// Lays `count` ≤ 64 bytes of each of four rows out as four vectors of inputs, 256 bytes: those
    /// of one column together, columns in the order of [`place_in_block`].
    unsafe fn interleave(to: *mut u8, rows: [*const u8; 4], count: usize);
}

#[derive(Clone, Copy)]
pub(super) struct Portable([i32; 16]);

#[inline(always)]
fn level(sum: i32, scale: f32, levels: Levels) -> u8 {
    let scaled = sum as f32 * scale;
    let bounded = if scaled < BOUND { scaled } else { BOUND };
    let rounded = bounded.max(-BOUND).round_ties_even() as i32 + i32::from(levels.zero);
    rounded.max(i32::from(levels.low)).min(i32::from(levels.high)) as u8
}

impl Sums for Portable {
    type X = [u8; 64];
    type W = [i8; 64];

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: the caller's pointer is readable for 16 values.
        Self(unsafe { from.cast::<[i32; 16]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32, count: usize) {
        // SAFETY: the caller's pointer is writable for `count` ≤ 16 values.
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, count) };
    }

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self::W {
        // SAFETY: the caller's pointer is readable for 64 values.
        unsafe { from.cast::<[i8; 64]>().read() }
    }

    #[inline(always)]
    unsafe fn splat(x: u32) -> Self::X {
        std::array::from_fn(|i| x.to_le_bytes()[i % 4])
    }

    #[inline(always)]
    unsafe fn inputs(from: *const u8) -> Self::X {
        // SAFETY: the caller's pointer is readable for 64 values.
        unsafe { from.cast::<[u8; 64]>().read() }
    }

    #[inline(always)]
    unsafe fn dot(self, x: Self::X, w: Self::W) -> Self {
        let term = |i: usize| i32::from(x[i]) * i32::from(w[i]);
        let sum = |i: usize| term(4 * i) + term(4 * i + 1) + term(4 * i + 2) + term(4 * i + 3);
        Self(std::array::from_fn(|i| self.0[i].wrapping_add(sum(i))))
    }

    #[inline(always)]
    unsafe fn store_levels(self, to: *mut u8, count: usize, scales: *const f32, levels: Levels) {
        for (lane, &sum) in self.0.iter().enumerate().take(count) {
            // SAFETY: 16 scales are readable, `count` levels writable.
            unsafe { *to.add(lane) = level(sum, *scales.add(lane), levels) };
        }
    }

    #[inline(always)]
    unsafe fn store_block(
        sums: [Self; 4],
        to: *mut u8,
        count: usize,
        scales: *const f32,
        levels: Levels,
    ) {
        for (vector, sums) in sums.iter().enumerate() {
            for (lane, &sum) in sums.0.iter().enumerate() {
                let place = place_in_block(vector, lane);
                if place < count {
                    // SAFETY: 64 scales are readable, `count` levels writable.
                    unsafe {
                        *to.add(place) = level(sum, *scales.add(vector * 16 + lane), levels);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn interleave(to: *mut u8, rows: [*const u8; 4], count: usize) {
        for at in 0..64 {
            let place = place_in_block(at / 16, at % 16);
            for (index, row) in rows.iter().enumerate() {
                // SAFETY: rows are readable for `count` bytes, 256 are writable.
                unsafe {
                    *to.add(at * 4 + index) = if place < count { *row.add(place) } else { 0 }
                };
            }
        }
    }
}
