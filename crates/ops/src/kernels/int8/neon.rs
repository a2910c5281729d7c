//! Registers of aarch64: with the dot products of ARMv8.2, and without.
//!
//! Both multiply signed bytes alone, so the left side is taken as u8 − 128, and the sums start with
//! what that takes away.
// SAFETY, for every block below: the caller vouches for the instructions and for the pointers.
#![allow(clippy::undocumented_unsafe_blocks)]
// As in `x86.rs`.
#![allow(clippy::wildcard_imports)]

use std::arch::aarch64::*;
use std::arch::asm;

use super::vector::{Floats, Sums};

/// What the two ways to sum share.
macro_rules! sums_of_128 {
    ($rows:literal) => {
        const LANES: usize = 4;
        const ROWS: usize = $rows;
        const WIDE: usize = 4;
        const LEFT_OFFSET: i32 = 128;

        type Left = int8x16_t;
        type Right = int8x16_t;
        type Floats = float32x4_t;

        #[inline(always)]
        unsafe fn load(from: *const i32) -> Self {
            Self(unsafe { vld1q_s32(from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut i32) {
            unsafe { vst1q_s32(to, self.0) }
        }

        #[inline(always)]
        unsafe fn left(group: u32) -> int8x16_t {
            unsafe { vreinterpretq_s8_u32(vdupq_n_u32(group ^ 0x8080_8080)) }
        }

        #[inline(always)]
        unsafe fn right(from: *const i8) -> int8x16_t {
            unsafe { vld1q_s8(from) }
        }

        #[inline(always)]
        unsafe fn floats(self) -> float32x4_t {
            unsafe { vcvtq_f32_s32(self.0) }
        }
    };
}

/// Four sums, by `sdot`.
#[derive(Clone, Copy)]
pub(super) struct Dot128(int32x4_t);

impl Sums for Dot128 {
    sums_of_128!(5);

    #[inline(always)]
    unsafe fn dot(self, left: int8x16_t, right: int8x16_t) -> Self {
        let mut sums = self.0;
        // The intrinsic is not stable.
        unsafe {
            asm!(
                "sdot {sums:v}.4s, {left:v}.16b, {right:v}.16b",
                sums = inout(vreg) sums,
                left = in(vreg) left,
                right = in(vreg) right,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        Self(sums)
    }
}

/// Four sums, by products of 16 bits whose sums of two are widened.
#[derive(Clone, Copy)]
pub(super) struct Wide128(int32x4_t);

impl Sums for Wide128 {
    sums_of_128!(4);

    #[inline(always)]
    unsafe fn dot(self, left: int8x16_t, right: int8x16_t) -> Self {
        unsafe {
            let low = vmull_s8(vget_low_s8(left), vget_low_s8(right));
            let high = vmull_high_s8(left, right);
            let pairs = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
            Self(vaddq_s32(self.0, pairs))
        }
    }
}

impl Floats for float32x4_t {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { vst1q_f32(to, self) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { vmulq_f32(self, other) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { vdivq_f32(self, other) }
    }

    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        unsafe { vfmaq_f32(b, self, a) }
    }

    // Of a NaN and a number, these two give the number.
    #[inline(always)]
    unsafe fn at_least(self, bound: Self) -> Self {
        unsafe { vmaxnmq_f32(self, bound) }
    }

    #[inline(always)]
    unsafe fn at_most(self, bound: Self) -> Self {
        unsafe { vminnmq_f32(self, bound) }
    }

    // By comparison, so that −0 is kept as on every other path.
    #[inline(always)]
    unsafe fn clipped(self, low: Self, high: Self) -> Self {
        unsafe {
            let raised = vbslq_f32(vcltq_f32(self, low), low, self);
            vbslq_f32(vcgtq_f32(raised, high), high, raised)
        }
    }

    #[inline(always)]
    unsafe fn unit_beyond(self, end: Self, inside: Self) -> Self {
        unsafe {
            let sign = vandq_u32(vreinterpretq_u32_f32(self), vdupq_n_u32(0x8000_0000));
            let unit = vorrq_u32(sign, vreinterpretq_u32_f32(vdupq_n_f32(1.0)));
            vbslq_f32(vcagtq_f32(self, end), vreinterpretq_f32_u32(unit), inside)
        }
    }

    #[inline(always)]
    unsafe fn store_levels(self, zero_point: i32, to: *mut u8) {
        unsafe {
            let levels = vaddq_s32(vcvtnq_s32_f32(self), vdupq_n_s32(zero_point));
            let words = vmovn_s32(levels);
            let bytes = vmovn_u16(vreinterpretq_u16_s16(vcombine_s16(words, words)));
            let four = vget_lane_u32::<0>(vreinterpret_u32_u8(bytes));
            to.cast::<u32>().write_unaligned(four);
        }
    }
}
