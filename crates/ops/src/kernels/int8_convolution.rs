//! Inner loops of a convolution of u8 inputs with i8 weights, channels the last axis of input and
//! output: as [`super::channels_last`] for f32, with exact i32 sums that become u8 levels in the
//! registers they were summed in.

use std::ops::Range;

use super::channels_last::even_tiles;
#[cfg(target_arch = "x86_64")]
use super::pair_fits_16_bits;
#[cfg(target_arch = "x86_64")]
use super::sums::{Avx2, Vnni};
use super::sums::{Levels, Portable, Sums};
use super::unrolled;

/// Instruction sets that the loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Int8Isa {
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// For weights whose pairs of neighbours do not saturate 16 bits.
    #[cfg(target_arch = "x86_64")]
    Avx2Narrow,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// The best of this CPU.
pub(crate) fn int8_isa() -> Int8Isa {
    #[cfg(target_arch = "x86_64")]
    {
        if super::isa() == super::Isa::Avx512 && is_x86_feature_detected!("avx512vnni") {
            return Int8Isa::Vnni;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Int8Isa::Avx2;
        }
    }
    Int8Isa::Portable
}

/// 64 weights, as one vector holds them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [i8; 64]);

impl Line {
    /// Whether no two neighbours that meet in one sum of 16 bits can leave it.
    #[cfg(target_arch = "x86_64")]
    fn has_small_pairs(&self) -> bool {
        self.0.as_chunks::<2>().0.iter().all(|&pair| pair_fits_16_bits(pair))
    }
}

/// Where the sums of a row go.
pub(crate) enum Target<'a> {
    /// u8 levels, by one scale per output of the tile, padded like the width.
    Levels { out: &'a mut [u8], scales: &'a [f32], levels: Levels },
    /// The sums themselves.
    Sums(&'a mut [i32]),
}

/// A row of pixels of a dense convolution, all its outputs of one tile of channels.
pub(crate) struct Int8Row<'a> {
    pub(crate) x: &'a [u8],
    /// Where the first pixel's first tap begins.
    pub(crate) first: usize,
    /// From one pixel to the next.
    pub(crate) step: usize,
    /// What each tap adds to a pixel's place.
    pub(crate) taps: &'a [usize],
    /// Values that a tap reads, one after the other.
    pub(crate) depth: usize,
    /// [tap, ⌈depth / 4⌉, vectors, 16, 4], zeros beyond depth and width. Outputs of a tile of four
    /// vectors stand in the order of [`super::sums::place_in_block`].
    pub(crate) w: &'a [Line],
    /// One per output, in the order of the weights and padded like them.
    pub(crate) bias: &'a [i32],
    pub(crate) pixels: usize,
    /// Outputs of the tile.
    pub(crate) width: usize,
    /// From one pixel's outputs to the next one's.
    pub(crate) out_step: usize,
}

impl Int8Row<'_> {
    /// How many of the first pixels can be read up to the next multiple of four of the depth,
    /// where weights are zero.
    fn whole_pixels(&self) -> usize {
        let reach = self.depth.next_multiple_of(4) + self.taps.iter().max().unwrap_or(&0);
        match self.x.len().checked_sub(self.first + reach) {
            None => 0,
            Some(beyond) => (beyond / self.step.max(1) + 1).min(self.pixels),
        }
    }
}

impl Int8Isa {
    /// The fastest instructions of this set that are exact for these weights.
    pub(crate) fn for_weights(self, lines: &[Line]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx2 && lines.iter().all(Line::has_small_pairs) {
            return Self::Avx2Narrow;
        }
        let _ = lines;
        self
    }

    /// Most vectors of 16 outputs that a tile may have.
    pub(crate) fn tile_vectors_max(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => 4,
            _ => 1,
        }
    }

    /// Computes one row. The target begins at the first pixel's first output of the tile.
    ///
    /// # Panics
    /// When the row reaches beyond a slice, or the CPU lacks the instructions.
    pub(crate) fn dense_row(self, target: Target, row: &Int8Row) {
        if row.pixels == 0 || row.width == 0 {
            return;
        }
        let vectors = row.width.div_ceil(16);
        let last = row.first + (row.pixels - 1) * row.step;
        assert!(row.taps.iter().all(|tap| last + tap + row.depth <= row.x.len()));
        assert!(row.w.len() >= row.taps.len() * row.depth.div_ceil(4) * vectors);
        assert!(row.bias.len() >= vectors * 16 && vectors <= self.tile_vectors_max());
        let written = (row.pixels - 1) * row.out_step + row.width;
        let out = match target {
            Target::Levels { out, scales, levels } => {
                assert!(written <= out.len() && scales.len() >= vectors * 16);
                Out::Levels(out.as_mut_ptr(), scales.as_ptr(), levels)
            }
            Target::Sums(out) => {
                // Sums of four vectors are not stored in order.
                assert!(written <= out.len() && vectors < 4);
                Out::Sums(out.as_mut_ptr())
            }
        };
        self.check();
        let whole = row.whole_pixels();
        for (pixels, is_whole) in [(0..whole, true), (whole..row.pixels, false)] {
            match self {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: all places and the instructions were checked above.
                Self::Vnni => unsafe {
                    match vectors {
                        1 => dense::<Vnni, 1, 14>(&out, row, pixels, is_whole),
                        2 => dense::<Vnni, 2, 12>(&out, row, pixels, is_whole),
                        3 => dense::<Vnni, 3, 8>(&out, row, pixels, is_whole),
                        _ => dense::<Vnni, 4, 6>(&out, row, pixels, is_whole),
                    }
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Self::Avx2Narrow => unsafe {
                    dense::<Avx2<true>, 1, 4>(&out, row, pixels, is_whole);
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Self::Avx2 => unsafe { dense::<Avx2<false>, 1, 4>(&out, row, pixels, is_whole) },
                // SAFETY: as above.
                Self::Portable => unsafe { dense::<Portable, 1, 4>(&out, row, pixels, is_whole) },
            }
        }
    }

    pub(super) fn check(self) {
        #[cfg(target_arch = "x86_64")]
        assert!(match self {
            Self::Vnni => int8_isa() == Self::Vnni,
            Self::Avx2Narrow | Self::Avx2 => int8_isa() != Self::Portable,
            Self::Portable => true,
        });
    }
}

/// A checked target.
pub(super) enum Out {
    Levels(*mut u8, *const f32, Levels),
    Sums(*mut i32),
}

/// Tiles one after the other, compiled for the instructions of their lanes.
trait Tiles: Sums {
    /// # Safety
    /// As [`dense`], and the CPU has the instructions.
    unsafe fn tiles<const V: usize, const P: usize>(
        out: &Out,
        row: &Int8Row,
        pixels: Range<usize>,
        is_whole: bool,
    );
}

macro_rules! tiles {
    ($lanes:ty $(, $features:literal)?) => {
        impl Tiles for $lanes {
            #[inline]
            unsafe fn tiles<const V: usize, const P: usize>(
                out: &Out,
                row: &Int8Row,
                pixels: Range<usize>,
                is_whole: bool,
            ) {
                $(#[target_feature(enable = $features)])?
                unsafe fn compiled<const V: usize, const P: usize>(
                    out: &Out,
                    row: &Int8Row,
                    pixels: Range<usize>,
                    is_whole: bool,
                ) {
                    for at in pixels.step_by(P) {
                        // SAFETY: the caller's promise.
                        unsafe { tile::<$lanes, V, P>(out, row, at, is_whole) }
                    }
                }
                // SAFETY: the caller's promise.
                unsafe { compiled::<V, P>(out, row, pixels, is_whole) }
            }
        }
    };
}

tiles!(Portable);
#[cfg(target_arch = "x86_64")]
tiles!(Vnni, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma");
#[cfg(target_arch = "x86_64")]
tiles!(Avx2<true>, "avx2,fma");
#[cfg(target_arch = "x86_64")]
tiles!(Avx2<false>, "avx2,fma");

/// Splits pixels of the row into tiles of nearly equal counts, at most `MOST`. Whole
/// pixels may be read up to the next multiple of four of the depth.
///
/// # Safety
/// Every place that the row names lies inside its slices; the width is at most 16·V.
unsafe fn dense<L: Tiles, const V: usize, const MOST: usize>(
    out: &Out,
    row: &Int8Row,
    pixels: Range<usize>,
    is_whole: bool,
) {
    for (pixels, count) in even_tiles(pixels, MOST) {
        // SAFETY: the pixels belong to the row, and are a multiple of the count.
        unsafe {
            match count {
                1 => L::tiles::<V, 1>(out, row, pixels, is_whole),
                2 => L::tiles::<V, 2>(out, row, pixels, is_whole),
                3 => L::tiles::<V, 3>(out, row, pixels, is_whole),
                4 => L::tiles::<V, 4>(out, row, pixels, is_whole),
                5 if MOST >= 5 => L::tiles::<V, 5>(out, row, pixels, is_whole),
                6 if MOST >= 6 => L::tiles::<V, 6>(out, row, pixels, is_whole),
                7 if MOST >= 7 => L::tiles::<V, 7>(out, row, pixels, is_whole),
                8 if MOST >= 8 => L::tiles::<V, 8>(out, row, pixels, is_whole),
                9 if MOST >= 9 => L::tiles::<V, 9>(out, row, pixels, is_whole),
                10 if MOST >= 10 => L::tiles::<V, 10>(out, row, pixels, is_whole),
                11 if MOST >= 11 => L::tiles::<V, 11>(out, row, pixels, is_whole),
                12 if MOST >= 12 => L::tiles::<V, 12>(out, row, pixels, is_whole),
                13 if MOST >= 13 => L::tiles::<V, 13>(out, row, pixels, is_whole),
                14 if MOST >= 14 => L::tiles::<V, 14>(out, row, pixels, is_whole),
                _ => unreachable!("a tile has at most {MOST} pixels"),
            }
        }
    }
}

/// Sums and stores pixels at..at + P.
///
/// # Safety
/// As [`dense`].
#[inline(always)]
unsafe fn tile<L: Sums, const V: usize, const P: usize>(
    out: &Out,
    row: &Int8Row,
    at: usize,
    is_whole: bool,
) {
    // SAFETY: the caller vouches for every place.
    unsafe {
        let mut bias = [L::load(row.bias.as_ptr()); V];
        unrolled!(v < V, { bias[v] = L::load(row.bias.as_ptr().add(v * 16)) });
        let mut sums = [bias; P];
        let mut w = row.w.as_ptr().cast::<i8>();
        let x = row.x.as_ptr().add(row.first + at * row.step);
        let (step, depth) = (row.step, row.depth);
        let (fours, rest) = if is_whole { (depth.div_ceil(4), 0) } else { (depth / 4, depth % 4) };
        for &tap in row.taps {
            let mut x = x.add(tap);
            for _ in 0..fours {
                let mut b = [L::weights(w); V];
                unrolled!(v < V, { b[v] = L::weights(w.add(v * 64)) });
                unrolled!(p < P, {
                    let a = L::splat(x.add(p * step).cast::<u32>().read_unaligned().to_le());
                    unrolled!(v < V, { sums[p][v] = sums[p][v].dot(a, b[v]) });
                });
                w = w.add(V * 64);
                x = x.add(4);
            }
            if rest > 0 {
                let mut b = [L::weights(w); V];
                unrolled!(v < V, { b[v] = L::weights(w.add(v * 64)) });
                unrolled!(p < P, {
                    let a = L::splat(few(x.add(p * step), rest));
                    unrolled!(v < V, { sums[p][v] = sums[p][v].dot(a, b[v]) });
                });
                w = w.add(V * 64);
            }
        }
        store::<L, V, P>(out, row, at, sums);
    }
}

/// Stores the sums of pixels at..at + P.
///
/// # Safety
/// As [`dense`].
#[inline(always)]
unsafe fn store<L: Sums, const V: usize, const P: usize>(
    out: &Out,
    row: &Int8Row,
    at: usize,
    sums: [[L; V]; P],
) {
    // Only the last vector may be cut short.
    let cut = row.width - (V - 1) * 16;
    let place = |p: usize| (at + p) * row.out_step;
    // SAFETY: the caller vouches for every place.
    unsafe {
        match out {
            Out::Levels(out, scales, levels) if V == 4 => {
                unrolled!(p < P, {
                    let sums = [sums[p][0], sums[p][1 % V], sums[p][2 % V], sums[p][3 % V]];
                    L::store_block(sums, out.add(place(p)), row.width, *scales, *levels);
                });
            }
            Out::Levels(out, scales, levels) if V == 1 => {
                unrolled!(p < P, {
                    if p % 2 == 1 {
                        let pair = [sums[p ^ 1][0], sums[p][0]];
                        let to = [out.add(place(p ^ 1)), out.add(place(p))];
                        L::store_two_levels(pair, to, cut, *scales, *levels);
                    } else if p + 1 == P {
                        sums[p][0].store_levels(out.add(place(p)), cut, *scales, *levels);
                    }
                });
            }
            Out::Levels(out, scales, levels) => {
                unrolled!(p < P, {
                    unrolled!(v < V, {
                        let count = if v + 1 < V { 16 } else { cut };
                        let to = out.add(place(p) + v * 16);
                        sums[p][v].store_levels(to, count, scales.add(v * 16), *levels);
                    });
                });
            }
            Out::Sums(out) => {
                unrolled!(p < P, {
                    unrolled!(v < V, {
                        let count = if v + 1 < V { 16 } else { cut };
                        sums[p][v].store(out.add(place(p) + v * 16), count);
                    });
                });
            }
        }
    }
}

/// The first `count` < 4 bytes, in the lowest places.
///
/// # Safety
/// The pointer is readable for `count` bytes.
#[inline(always)]
unsafe fn few(from: *const u8, count: usize) -> u32 {
    let byte = |at: usize| {
        if at >= count {
            return 0;
        }
        // SAFETY: the caller's promise.
        u32::from(unsafe { *from.add(at) }) << (8 * at)
    };
    byte(0) | byte(1) | byte(2)
}
