//! Inner loops, compiled for each instruction set and chosen when they run. The only unsafe code
//! of this crate: calls into functions compiled for instructions that were found present.
#![allow(unsafe_code)]
// A loop becomes vector code only with everything it calls inlined into it.
#![allow(clippy::inline_always)]

pub(crate) mod attention8;
pub(crate) mod batch_normalization;
pub(crate) mod channels_last;
pub(crate) mod elementwise;
pub(crate) mod fake_quantize;
pub(crate) mod gemm;
pub(crate) mod gradient;
pub(crate) mod int8;
pub(crate) mod int8_convolution;
pub(crate) mod int8_depthwise;
pub(crate) mod lanes;
pub(crate) mod math;
pub(crate) mod normalize;
pub(crate) mod normalize_levels;
pub(crate) mod optimize;
pub(crate) mod outer;
pub(crate) mod pooling;
pub(crate) mod quantize;
pub(crate) mod real_fourier;
pub(crate) mod recurrent;
pub(crate) mod recurrent_steps;
pub(crate) mod recurrent_training;
pub(crate) mod reducing;
mod registers;
pub(crate) mod resample;
pub(crate) mod slope;
pub(crate) mod slopes;
pub(crate) mod softmax;
pub(crate) mod sums;
pub(crate) mod transpose;

use channels_last::unrolled;
use rayon::prelude::*;

/// Instruction sets that the loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// The best instruction set of this CPU.
pub(crate) fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        // The standard library caches the answer.
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
        {
            return Isa::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Isa::Avx2;
        }
    }
    Isa::Portable
}

/// The instruction set that kernels run with, for reports.
pub fn isa_name() -> &'static str {
    match isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => "AVX-512",
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => "AVX2",
        Isa::Portable => "portable",
    }
}

/// Asks for what will soon be read or written, which may lie outside of everything.
#[inline(always)]
fn prefetch(place: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: nothing is read; every x86-64 has the instruction.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Defines a function whose body is compiled once per instruction set.
///
/// The body sees `const FMA: bool`: whether a fused multiply-add is one instruction. Everything it
/// calls must be `#[inline(always)]` to be compiled along.
macro_rules! vectorized {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$fma:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    )*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)] // a kernel takes what its loop reads, one by one
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[allow(clippy::too_many_arguments)]
            #[inline(always)]
            fn body<const $fma: bool>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
                match $crate::kernels::isa() {
                    // SAFETY: `isa` found every feature that the function is compiled for.
                    $crate::kernels::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernels::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernels::Isa::Portable => {}
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    )*};
}
pub(crate) use vectorized;

/// Elements below which a second thread costs more than it brings.
pub(crate) const PARALLEL_MIN: usize = 1 << 15;

/// Calls `work(first_row, rows)` over all rows of `out`, on every thread of the pool if there is
/// enough to do. A row is never split, so results do not depend on the thread count.
pub(crate) fn for_rows<T: Send>(
    out: &mut [T],
    row_size: usize,
    work: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    let size = out.len();
    for_rows_of_work(out, row_size, size, work);
}

/// As [`for_rows`], where the work is to read or write `work_size` elements.
pub(crate) fn for_rows_of_work<T: Send>(
    out: &mut [T],
    row_size: usize,
    work_size: usize,
    work: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    let threads = crate::threads::count();
    if row_size == 0 || out.is_empty() {
        return;
    }
    if threads == 1 || work_size < PARALLEL_MIN {
        return work(0, out);
    }
    let row_count = out.len() / row_size;
    let rows_each = row_count.div_ceil(threads * 4).max(1);
    out.par_chunks_mut(rows_each * row_size)
        .enumerate()
        .for_each(|(index, chunk)| work(index * rows_each, chunk));
}

/// As [`for_rows`], over the same rows of two results.
pub(crate) fn for_row_pairs<T: Send, U: Send>(
    first_out: &mut [T],
    second_out: &mut [U],
    row_size: usize,
    work: impl Fn(usize, &mut [T], &mut [U]) + Send + Sync,
) {
    let threads = crate::threads::count();
    if row_size == 0 || first_out.is_empty() {
        return;
    }
    if threads == 1 || first_out.len() < PARALLEL_MIN {
        return work(0, first_out, second_out);
    }
    let rows_each = (first_out.len() / row_size).div_ceil(threads * 4).max(1);
    first_out
        .par_chunks_mut(rows_each * row_size)
        .zip(second_out.par_chunks_mut(rows_each * row_size))
        .enumerate()
        .for_each(|(index, (first, second))| work(index * rows_each, first, second));
}

/// Whether two weights, each times a byte of 0..=255, add up to 16 bits.
#[cfg(target_arch = "x86_64")]
fn pair_fits_16_bits(pair: [i8; 2]) -> bool {
    let ends = |end: fn(i32, i32) -> i32| 255 * pair.map(|w| end(w.into(), 0)).iter().sum::<i32>();
    ends(i32::max) <= i16::MAX.into() && ends(i32::min) >= i16::MIN.into()
}
