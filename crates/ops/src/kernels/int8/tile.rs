//! Sums of a few rows and one panel of columns in registers, and what becomes of them.

use std::mem::MaybeUninit;

use super::epilogue::{Chain, Clip, CoarseGelu, Gelu, Identity, Place};
use super::vector::{Floats, Sums};
use super::{Activation, Job, Out, Task};

/// Blocks of rows whose sums are turned into results together: what surrounds that is done once for
/// them, and their sums stay in the L1 cache.
const BLOCKS: usize = 4;

/// Most sums of as many blocks: six rows of 64 columns each.
const SUMS_MAX: usize = BLOCKS * 6 * 64;

#[repr(align(64))]
struct Scratch([MaybeUninit<i32>; SUMS_MAX]);

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Lines that are fetched at once: more would hold up what the block itself reads.
const FETCHED_MAX: usize = 24;

/// Computes the rows of one panel that the task names.
///
/// # Safety
/// Needs the instruction set of `T`, weights packed for it, and a job whose pointers hold what it
/// says.
#[inline(always)]
pub(super) unsafe fn run<T: Sums>(job: &Job, task: Task) {
    let product = job.product;
    let panel_columns = T::WIDE * T::LANES;
    let first_column = task.panel * panel_columns;
    let columns = panel_columns.min(product.n - first_column);
    let wide = columns.div_ceil(T::LANES);
    // SAFETY: the panel lies within the packed weights.
    let weights = unsafe { product.weights.data().add(first_column * product.groups() * 4) };
    let starts = &product.starts[first_column..first_column + wide * T::LANES];
    let mut scratch = Scratch([const { MaybeUninit::uninit() }; SUMS_MAX]);
    // While this panel is in use, the next one is fetched, a part with each block.
    let next = weights.wrapping_add(panel_columns * product.groups() * 4);
    let next_columns = panel_columns.min(product.n.saturating_sub(first_column + panel_columns));
    let lines = next_columns * product.groups() * 4 / LINE;
    let count = task.row_end - task.first_row;
    let blocks = count.div_ceil(T::ROWS);
    let lines = if lines > blocks * FETCHED_MAX { 0 } else { lines };
    let (mut row, mut finished) = (task.first_row, task.first_row);
    for block in 0..blocks {
        // Blocks of nearly the same size keep more rows in flight than one small block at the end.
        let rows = (task.row_end - row).div_ceil(blocks - block);
        let left = Left {
            // SAFETY: the row lies within the left side.
            data: unsafe { job.left.add(row * job.left_stride) },
            stride: job.left_stride,
            depth: product.k,
        };
        let sums = scratch.0[(row - finished) * wide * T::LANES..].as_mut_ptr().cast::<i32>();
        for line in lines * block / blocks..lines * (block + 1) / blocks {
            // SAFETY: any address may be asked for.
            unsafe { T::prefetch(next.wrapping_add(line * LINE)) };
        }
        // SAFETY: the caller vouches for the instructions, and the tile for what it reads.
        unsafe {
            let is_counted = product.weights.bits().is_some_and(|columns| {
                T::count_bits(columns, first_column, (rows, wide), left, starts, sums)
            });
            match rows {
                _ if is_counted => {}
                1 => tiles::<T, 1>(wide, left, weights, starts, sums),
                2 => tiles::<T, 2>(wide, left, weights, starts, sums),
                3 => tiles::<T, 3>(wide, left, weights, starts, sums),
                4 => tiles::<T, 4>(wide, left, weights, starts, sums),
                5 => tiles::<T, 5>(wide, left, weights, starts, sums),
                _ => tiles::<T, 6>(wide, left, weights, starts, sums),
            }
        }
        row += rows;
        if (block + 1).is_multiple_of(BLOCKS) || block + 1 == blocks {
            let place = Place { row: finished, rows: row - finished, first_column, columns };
            // SAFETY: as above.
            unsafe { finish::<T>(job, place, scratch.0.as_mut_ptr().cast()) };
            finished = row;
        }
    }
}

/// Rows of u8.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) data: *const u8,
    pub(super) stride: usize,
    pub(super) depth: usize,
}

#[inline(always)]
unsafe fn tiles<T: Sums, const R: usize>(
    wide: usize,
    left: Left,
    weights: *const i8,
    starts: &[i32],
    sums: *mut i32,
) {
    // SAFETY: as the caller's.
    unsafe {
        match wide {
            1 => T::tile::<R, 1>(left, weights, starts, sums),
            2 => T::tile::<R, 2>(left, weights, starts, sums),
            3 => T::tile::<R, 3>(left, weights, starts, sums),
            _ => T::tile::<R, 4>(left, weights, starts, sums),
        }
    }
}

/// sums = starts + left·weights, `R` rows of `W` vectors.
#[inline(always)]
pub(super) unsafe fn tile<T: Sums, const R: usize, const W: usize>(
    left: Left,
    weights: *const i8,
    starts: &[i32],
    sums: *mut i32,
) {
    // What no task asks for is not compiled.
    if R > T::ROWS || W > T::WIDE {
        unreachable!("a tile has at most {} rows of {} vectors", T::ROWS, T::WIDE);
    }
    // SAFETY: a row has `depth` bytes, a panel one group of four for every four of them begun,
    // `starts` W vectors, `sums` room for R rows of them.
    unsafe {
        // No closures: those are not compiled for the CPU that they are for.
        let mut start = [T::load(starts.as_ptr()); W];
        for (w, start) in start.iter_mut().enumerate().skip(1) {
            *start = T::load(starts.as_ptr().add(w * T::LANES));
        }
        let mut tile = [start; R];
        let step = W * T::LANES * 4;
        let whole = left.depth / 4;
        for group in 0..whole {
            let from = weights.add(group * step);
            let right = vectors::<T, W>(from);
            for (r, row) in tile.iter_mut().enumerate() {
                let bytes = left.data.add(r * left.stride + group * 4);
                add_row::<T, W>(row, bytes.cast::<u32>().read_unaligned(), &right);
            }
        }
        let rest = left.depth % 4;
        if rest > 0 {
            let from = weights.add(whole * step);
            let right = vectors::<T, W>(from);
            for (r, row) in tile.iter_mut().enumerate() {
                let mut bytes = [0_u8; 4];
                let from = left.data.add(r * left.stride + whole * 4);
                std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), rest);
                add_row::<T, W>(row, u32::from_ne_bytes(bytes), &right);
            }
        }
        for (r, row) in tile.iter().enumerate() {
            for (w, vector) in row.iter().enumerate() {
                vector.store(sums.add((r * W + w) * T::LANES));
            }
        }
    }
}

/// Four rows of each column of a panel.
#[inline(always)]
unsafe fn vectors<T: Sums, const W: usize>(from: *const i8) -> [T::Right; W] {
    // SAFETY: as the caller's.
    unsafe {
        let mut vectors = [T::right(from); W];
        for (w, vector) in vectors.iter_mut().enumerate().skip(1) {
            *vector = T::right(from.add(w * T::LANES * 4));
        }
        vectors
    }
}

#[inline(always)]
unsafe fn add_row<T: Sums, const W: usize>(row: &mut [T; W], group: u32, right: &[T::Right; W]) {
    // SAFETY: as the caller's.
    unsafe {
        let left = T::left(group);
        for (sum, &right) in row.iter_mut().zip(right) {
            *sum = sum.dot(left, right);
        }
    }
}

/// Turns a tile's sums into results.
#[inline(always)]
unsafe fn finish<T: Sums>(job: &Job, place: Place, sums: *mut i32) {
    let chain = Chain { job, place };
    if let Out::I32(out) = job.out {
        // SAFETY: as the caller's.
        return unsafe { chain.store_sums::<T>(sums, out) };
    }
    // SAFETY: as the caller's.
    unsafe {
        match job.product.activation {
            Activation::None => chain.run::<T, _>(sums, &Identity),
            Activation::Clip { low, high } => {
                let ends = [T::Floats::splat(low), T::Floats::splat(high)];
                chain.run::<T, _>(sums, &Clip(ends));
            }
            Activation::Gelu if job.product.levels.is_coarse() => {
                chain.run::<T, _>(sums, &CoarseGelu);
            }
            Activation::Gelu => chain.run::<T, _>(sums, &Gelu),
            Activation::Each(function) => chain.run_each::<T>(sums, function),
        }
    }
}

/// A tile of rows and vectors that are known when it is compiled.
#[cfg(target_arch = "x86_64")]
pub(super) type Apart = unsafe fn(Left, *const i8, &[i32], *mut i32);

/// The tile of a type, compiled apart from all around it: among other code, the allocation of
/// registers spills some of the sums in its innermost loop.
#[cfg(target_arch = "x86_64")]
macro_rules! tile_of {
    ($sums:ty, $features:literal) => {
        #[inline(always)]
        unsafe fn tile<const R: usize, const W: usize>(
            left: super::tile::Left,
            weights: *const i8,
            starts: &[i32],
            sums: *mut i32,
        ) {
            #[inline(never)]
            #[target_feature(enable = $features)]
            unsafe fn apart<const R: usize, const W: usize>(
                left: super::tile::Left,
                weights: *const i8,
                starts: &[i32],
                sums: *mut i32,
            ) {
                // SAFETY: as the caller's.
                unsafe { super::tile::tile::<$sums, R, W>(left, weights, starts, sums) }
            }
            // Of a function that is called by its name, a copy is made here after all.
            let apart = std::hint::black_box(apart::<R, W> as super::tile::Apart);
            // SAFETY: as the caller's.
            unsafe { apart(left, weights, starts, sums) }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use tile_of;
