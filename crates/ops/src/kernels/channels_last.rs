//! Inner loops of a convolution whose channels are the last axis of input and output.
//!
//! A row of output pixels takes its inputs from `x` at equal steps; what a tap adds to a pixel's
//! place is the same for the whole row:
//! y[p, o] = finish(Σ over taps t and channels c of x[first + p·step + t + c] · w[t, c, o]).

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::registers::{Avx2, Avx512};
use super::registers::{Lanes, Portable};
use super::{Isa, isa};

/// What becomes of a sum before it is stored: `+ bias`, `+ addend`, activation, then
/// · scale + shift.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Finish {
    pub(crate) activation: Activation,
    pub(crate) scale: f32,
    pub(crate) shift: f32,
}

/// Activations that are computed in the registers of the sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    None,
    /// Between low and high; NaN stays.
    Clamp(f32, f32),
    /// x · clamp(α·x + β, 0, 1)
    HardSwish(f32, f32),
    /// clamp(α·x + β, 0, 1)
    HardSigmoid(f32, f32),
    /// x where it is positive, α·x elsewhere.
    LeakyRelu(f32),
}

impl Finish {
    fn bounds(&self) -> (f32, f32) {
        match self.activation {
            Activation::Clamp(low, high) => (low, high),
            _ => (f32::NEG_INFINITY, f32::INFINITY),
        }
    }

    fn is_more_than_bounds(&self) -> bool {
        let is_bounds = matches!(self.activation, Activation::None | Activation::Clamp(..));
        !is_bounds || self.scale != 1.0 || self.shift != 0.0
    }
}

/// A row of pixels of a dense convolution, all its outputs of one tile of channels.
pub(crate) struct DenseRow<'a> {
    pub(crate) x: &'a [f32],
    /// Where the first pixel's first tap begins.
    pub(crate) first: usize,
    /// From one pixel to the next.
    pub(crate) step: usize,
    /// What each tap adds to a pixel's place.
    pub(crate) taps: &'a [usize],
    /// Values that a tap reads, one after the other.
    pub(crate) depth: usize,
    /// [tap, depth, width], the width padded with zeros to a multiple of 16.
    pub(crate) w: &'a [f32],
    /// One per output of the tile, padded like the width.
    pub(crate) bias: &'a [f32],
    /// Added to the sums, laid out like the output.
    pub(crate) addend: Option<&'a [f32]>,
    pub(crate) finish: Finish,
    pub(crate) pixels: usize,
    /// Outputs of the tile.
    pub(crate) width: usize,
    /// From one pixel's outputs to the next one's.
    pub(crate) out_step: usize,
}

/// Most vectors of 16 outputs that a tile may have.
pub(crate) fn tile_vectors_max() -> usize {
    match isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => 4,
        _ => 1,
    }
}

/// Computes one row. `out` begins at the first pixel's first output of the tile.
///
/// # Panics
/// When the row reaches beyond a slice.
pub(crate) fn dense_row(out: &mut [f32], row: &DenseRow) {
    if row.pixels == 0 || row.width == 0 {
        return;
    }
    let vectors = row.width.div_ceil(16);
    let last = row.first + (row.pixels - 1) * row.step;
    assert!(row.taps.iter().all(|tap| last + tap + row.depth <= row.x.len()));
    assert!(row.w.len() >= row.taps.len() * row.depth * vectors * 16);
    assert!(row.bias.len() >= vectors * 16);
    let written = (row.pixels - 1) * row.out_step + row.width;
    assert!(written <= out.len() && row.addend.is_none_or(|addend| written <= addend.len()));
    let out = out.as_mut_ptr();
    match isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` found the instructions; all places were checked above.
        Isa::Avx512 => unsafe { dense_avx512(out, row, vectors) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { dense::<Avx2, 1, 6>(out, row) },
        // SAFETY: as above.
        Isa::Portable => unsafe { dense::<Portable, 1, 4>(out, row) },
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn dense_avx512(out: *mut f32, row: &DenseRow, vectors: usize) {
    // SAFETY: the caller checked every place and the instructions.
    unsafe {
        match vectors {
            1 => dense::<Avx512, 1, 14>(out, row),
            2 => dense::<Avx512, 2, 14>(out, row),
            3 => dense::<Avx512, 3, 9>(out, row),
            _ => dense::<Avx512, 4, 6>(out, row),
        }
    }
}

/// Tiles one after the other, compiled for the instructions of their lanes: a function of its own, so
/// that the frames of all tile sizes do not add up where nothing is optimized.
trait Tiles: Lanes {
    /// # Safety
    /// As [`dense`], and the CPU has the instructions.
    unsafe fn tiles<const V: usize, const P: usize>(
        out: *mut f32,
        row: &DenseRow,
        pixels: Range<usize>,
    );
}

macro_rules! tiles {
    ($lanes:ty $(, $features:literal)?) => {
        impl Tiles for $lanes {
            #[inline]
            unsafe fn tiles<const V: usize, const P: usize>(
                out: *mut f32,
                row: &DenseRow,
                pixels: Range<usize>,
            ) {
                $(#[target_feature(enable = $features)])?
                unsafe fn compiled<const V: usize, const P: usize>(
                    out: *mut f32,
                    row: &DenseRow,
                    pixels: Range<usize>,
                ) {
                    for at in pixels.step_by(P) {
                        // SAFETY: the caller's promise.
                        unsafe { tile::<$lanes, V, P>(out, row, at) }
                    }
                }
                // SAFETY: the caller's promise.
                unsafe { compiled::<V, P>(out, row, pixels) }
            }
        }
    };
}

tiles!(Portable);
#[cfg(target_arch = "x86_64")]
tiles!(Avx512, "avx512f,avx512bw,avx512dq,avx512vl,fma");
#[cfg(target_arch = "x86_64")]
tiles!(Avx2, "avx2,fma");

/// Splits the row into tiles of nearly equal counts of pixels, at most `MOST`.
///
/// # Safety
/// Every place that the row names lies inside its slices; the width is at most 16·V.
unsafe fn dense<L: Tiles, const V: usize, const MOST: usize>(out: *mut f32, row: &DenseRow) {
    for (pixels, count) in even_tiles(0..row.pixels, MOST) {
        // SAFETY: the pixels belong to the row, and are a multiple of the count.
        unsafe {
            match count {
                1 => L::tiles::<V, 1>(out, row, pixels),
                2 => L::tiles::<V, 2>(out, row, pixels),
                3 => L::tiles::<V, 3>(out, row, pixels),
                4 => L::tiles::<V, 4>(out, row, pixels),
                5 if MOST >= 5 => L::tiles::<V, 5>(out, row, pixels),
                6 if MOST >= 6 => L::tiles::<V, 6>(out, row, pixels),
                7 if MOST >= 7 => L::tiles::<V, 7>(out, row, pixels),
                8 if MOST >= 8 => L::tiles::<V, 8>(out, row, pixels),
                9 if MOST >= 9 => L::tiles::<V, 9>(out, row, pixels),
                10 if MOST >= 10 => L::tiles::<V, 10>(out, row, pixels),
                11 if MOST >= 11 => L::tiles::<V, 11>(out, row, pixels),
                12 if MOST >= 12 => L::tiles::<V, 12>(out, row, pixels),
                13 if MOST >= 13 => L::tiles::<V, 13>(out, row, pixels),
                14 if MOST >= 14 => L::tiles::<V, 14>(out, row, pixels),
                _ => unreachable!("a tile has at most {MOST} pixels"),
            }
        }
    }
}

/// Pixels in tiles of nearly equal counts, at most `most`: those of tiles of the same count, with it.
pub(super) fn even_tiles(
    pixels: Range<usize>,
    most: usize,
) -> impl Iterator<Item = (Range<usize>, usize)> {
    let tiles = pixels.len().div_ceil(most).max(1);
    let (each, larger) = (pixels.len() / tiles, pixels.len() % tiles);
    let middle = pixels.start + larger * (each + 1);
    let parts = [(pixels.start..middle, each + 1), (middle..pixels.end, each)];
    parts.into_iter().filter(|(pixels, _)| !pixels.is_empty())
}

/// Runs the body for every index below `$count` ≤ 14, written out: an array that is indexed by a
/// loop which the compiler keeps lives in memory instead of in registers.
macro_rules! unrolled {
    ($index:ident < $count:expr, $body:block) => {
        unrolled!(@ $index, $count, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    (@ $index:ident, $count:expr, $body:block, $($at:literal)*) => {
        $(if $at < $count {
            let $index: usize = $at;
            $body
        })*
    };
}
pub(super) use unrolled;

/// Sums, clamps and stores pixels at..at + P.
///
/// # Safety
/// As [`dense`].
#[inline(always)]
unsafe fn tile<L: Lanes, const V: usize, const P: usize>(out: *mut f32, row: &DenseRow, at: usize) {
    // SAFETY: the caller vouches for every place.
    unsafe {
        let mut bias = [L::splat(0.0); V];
        unrolled!(v < V, { bias[v] = L::load(row.bias.as_ptr().add(v * 16)) });
        let mut sums = [bias; P];
        let mut w = row.w.as_ptr();
        let x = row.x.as_ptr().add(row.first + at * row.step);
        let step = row.step;
        for &tap in row.taps {
            let mut x = x.add(tap);
            for _ in 0..row.depth {
                let mut b = [L::splat(0.0); V];
                unrolled!(v < V, { b[v] = L::load(w.add(v * 16)) });
                unrolled!(p < P, {
                    let a = L::splat(*x.add(p * step));
                    unrolled!(v < V, { sums[p][v] = sums[p][v].fma(a, b[v]) });
                });
                w = w.add(V * 16);
                x = x.add(1);
            }
        }
        let start = at * row.out_step;
        let (low, high) = row.finish.bounds();
        let (low, high) = (L::splat(low), L::splat(high));
        // Only the last vector may be cut short.
        let rest = row.width - (V - 1) * 16;
        unrolled!(p < P, {
            let place = start + p * row.out_step;
            unrolled!(v < V, {
                let count = if v + 1 < V { 16 } else { rest };
                let mut sum = sums[p][v];
                if let Some(addend) = row.addend {
                    sum = sum.add(load::<L>(addend.as_ptr().add(place + v * 16), count));
                }
                store(sum.max(low).min(high), out.add(place + v * 16), count);
            });
        });
        if row.finish.is_more_than_bounds() {
            for p in 0..P {
                finish_values::<L>(out.add(start + p * row.out_step), row.width, &row.finish);
            }
        }
    }
}

/// # Safety
/// The pointer is readable for `count` values.
#[inline(always)]
pub(super) unsafe fn load<L: Lanes>(from: *const f32, count: usize) -> L {
    // SAFETY: the caller's promise.
    unsafe { if count == 16 { L::load(from) } else { L::load_part(from, count) } }
}

/// # Safety
/// The pointer is writable for `count` values.
#[inline(always)]
pub(super) unsafe fn store<L: Lanes>(value: L, to: *mut f32, count: usize) {
    // SAFETY: the caller's promise.
    unsafe { if count == 16 { value.store(to) } else { value.store_part(to, count) } }
}

/// Finishes `count` sums that were stored, while they are in the cache.
///
/// # Safety
/// The pointer is readable and writable for `count` values; the CPU has the instructions of `L`.
#[inline(always)]
unsafe fn finish_values<L: Lanes>(values: *mut f32, count: usize, finish: &Finish) {
    // SAFETY: the caller's promise.
    unsafe {
        let (zero, one) = (L::splat(0.0), L::splat(1.0));
        let (scale, shift) = (L::splat(finish.scale), L::splat(finish.shift));
        for at in (0..count).step_by(16) {
            let (values, count) = (values.add(at), (count - at).min(16));
            let x = load::<L>(values, count);
            let line = |a: f32, b: f32| L::splat(b).fma(x, L::splat(a)).max(zero).min(one);
            let y = match finish.activation {
                Activation::None | Activation::Clamp(..) => x,
                Activation::HardSwish(a, b) => x.mul(line(a, b)),
                Activation::HardSigmoid(a, b) => line(a, b),
                Activation::LeakyRelu(a) => x.max(zero).fma(x.min(zero), L::splat(a)),
            };
            store(shift.fma(y, scale), values, count);
        }
    }
}

/// A row of pixels of a depthwise convolution:
/// y[p, c] = finish(bias[c] + Σ over taps of x[first + p·step + tap + c] · w[weight of tap + c]).
pub(crate) struct DepthwiseRow<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) first: usize,
    pub(crate) step: usize,
    /// Per tap, what it adds to a pixel's place, and where its weights begin.
    pub(crate) taps: &'a [(usize, usize)],
    pub(crate) w: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) addend: Option<&'a [f32]>,
    pub(crate) finish: Finish,
    pub(crate) pixels: usize,
    pub(crate) channels: usize,
    /// From one pixel's outputs to the next one's.
    pub(crate) out_step: usize,
}

/// Computes one row. `out` begins at the first pixel's first output.
///
/// # Panics
/// When the row reaches beyond a slice.
pub(crate) fn depthwise_row(out: &mut [f32], row: &DepthwiseRow) {
    if row.pixels == 0 || row.channels == 0 {
        return;
    }
    let last = row.first + (row.pixels - 1) * row.step;
    let is_inside = |&(tap, weight): &(usize, usize)| {
        last + tap + row.channels <= row.x.len() && weight + row.channels <= row.w.len()
    };
    assert!(row.taps.iter().all(is_inside) && row.channels <= row.bias.len());
    let written = (row.pixels - 1) * row.out_step + row.channels;
    assert!(written <= out.len() && row.addend.is_none_or(|addend| written <= addend.len()));
    let out = out.as_mut_ptr();
    match isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` found the instructions; all places were checked above.
        Isa::Avx512 => unsafe { depthwise_avx512(out, row) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { depthwise_avx2(out, row) },
        // SAFETY: as above.
        Isa::Portable => unsafe { depthwise::<Portable>(out, row) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn depthwise_avx512(out: *mut f32, row: &DepthwiseRow) {
    // SAFETY: the caller checked every place and the instructions.
    unsafe { depthwise::<Avx512>(out, row) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn depthwise_avx2(out: *mut f32, row: &DepthwiseRow) {
    // SAFETY: the caller checked every place and the instructions.
    unsafe { depthwise::<Avx2>(out, row) }
}

/// # Safety
/// Every place that the row names lies inside its slices.
#[inline(always)]
unsafe fn depthwise<L: Lanes>(out: *mut f32, row: &DepthwiseRow) {
    let mut tiles = row.pixels.div_ceil(8);
    let mut at = 0;
    while tiles > 0 {
        let pixels = (row.pixels - at).div_ceil(tiles);
        // SAFETY: pixels at..at + pixels belong to the row.
        unsafe {
            match pixels {
                1 => depthwise_tiles::<L, 1>(out, row, at),
                2 => depthwise_tiles::<L, 2>(out, row, at),
                3 => depthwise_tiles::<L, 3>(out, row, at),
                4 => depthwise_tiles::<L, 4>(out, row, at),
                5 => depthwise_tiles::<L, 5>(out, row, at),
                6 => depthwise_tiles::<L, 6>(out, row, at),
                7 => depthwise_tiles::<L, 7>(out, row, at),
                _ => depthwise_tiles::<L, 8>(out, row, at),
            }
        }
        at += pixels;
        tiles -= 1;
    }
}

/// # Safety
/// As [`depthwise`].
#[inline(always)]
unsafe fn depthwise_tiles<L: Lanes, const P: usize>(out: *mut f32, row: &DepthwiseRow, at: usize) {
    let full = row.channels / 16 * 16;
    for channel in (0..full).step_by(16) {
        // SAFETY: the pixels and channels belong to the row.
        unsafe { depthwise_tile::<L, P, true>(out, row, at, channel, 16) }
    }
    if full < row.channels {
        // SAFETY: as above.
        unsafe { depthwise_tile::<L, P, false>(out, row, at, full, row.channels - full) }
    }
}

/// # Safety
/// As [`depthwise`]; `count` is the channels that are left, at most 16.
#[inline(always)]
unsafe fn depthwise_tile<L: Lanes, const P: usize, const FULL: bool>(
    out: *mut f32,
    row: &DepthwiseRow,
    at: usize,
    channel: usize,
    count: usize,
) {
    let count = if FULL { 16 } else { count };
    // SAFETY: the caller vouches for every place.
    unsafe {
        let mut sums = [load::<L>(row.bias.as_ptr().add(channel), count); P];
        let x = row.x.as_ptr().add(row.first + at * row.step + channel);
        let w = row.w.as_ptr().add(channel);
        let step = row.step;
        for &(tap, weight) in row.taps {
            let (x, w) = (x.add(tap), load::<L>(w.add(weight), count));
            unrolled!(p < P, { sums[p] = sums[p].fma(load::<L>(x.add(p * step), count), w) });
        }
        let (low, high) = row.finish.bounds();
        let (low, high) = (L::splat(low), L::splat(high));
        unrolled!(p < P, {
            let place = (at + p) * row.out_step + channel;
            let mut sum = sums[p];
            if let Some(addend) = row.addend {
                sum = sum.add(load::<L>(addend.as_ptr().add(place), count));
            }
            store(sum.max(low).min(high), out.add(place), count);
        });
        if row.finish.is_more_than_bounds() {
            for p in 0..P {
                let place = (at + p) * row.out_step + channel;
                finish_values::<L>(out.add(place), count, &row.finish);
            }
        }
    }
}

#[cfg(test)]
mod tests;
