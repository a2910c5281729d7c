//! Sums of products over rows, what gradients of weights are made of:
//! y[m, n] += Σ over rows r of a[r, m] · b[r, n].

use super::channels_last::{load, store, unrolled};
#[cfg(target_arch = "x86_64")]
use super::registers::{Avx2, Avx512};
use super::registers::{Lanes, Portable};
use super::{Isa, isa, prefetch};

/// Rows at equal steps, of which `width` values are read.
#[derive(Clone, Copy)]
pub(crate) struct Slab<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) step: usize,
    pub(crate) width: usize,
}

impl Slab<'_> {
    pub(crate) fn below(self, row: usize) -> Self {
        Self { data: &self.data[row * self.step..], ..self }
    }

    fn holds(&self, rows: usize) -> bool {
        rows == 0 || (rows - 1) * self.step + self.width <= self.data.len()
    }
}

/// Rows that are summed in registers before their sum joins `y`: both slabs' rows stay in the L2
/// cache while all tiles pass over them.
const ROWS: usize = 256;

/// y[m, n] += Σ a[r, m] · b[r, n]; `y` is [a.width, b.width]. Rows are summed in one order
/// whatever the widths.
///
/// # Panics
/// When a slab does not hold the rows, or `y` not the products.
pub(crate) fn add_outer(y: &mut [f32], a: Slab, b: Slab, rows: usize) {
    assert!(a.holds(rows) && b.holds(rows) && y.len() >= a.width * b.width);
    for first in (0..rows).step_by(ROWS) {
        let count = (rows - first).min(ROWS);
        let (a_part, b_part) = (a.below(first).data, b.below(first).data);
        let most = super::channels_last::tile_vectors_max();
        let mut vectors = b.width.div_ceil(16);
        let mut column = 0;
        while vectors > 0 {
            let part = vectors.div_ceil(vectors.div_ceil(most));
            let width = (b.width - column).min(part * 16);
            let strip = Strip {
                a: a_part,
                a_step: a.step,
                b: &b_part[column..],
                b_step: b.step,
                rows: count,
                height: a.width,
                width,
                y_step: b.width,
            };
            add_strip(&mut y[column..], &strip, part);
            column += width;
            vectors -= part;
        }
    }
}

/// All of `a` against up to 64 columns of `b`.
struct Strip<'a> {
    a: &'a [f32],
    a_step: usize,
    b: &'a [f32],
    b_step: usize,
    rows: usize,
    height: usize,
    width: usize,
    y_step: usize,
}

fn add_strip(y: &mut [f32], strip: &Strip, vectors: usize) {
    let _ = vectors;
    if strip.height == 0 || strip.width == 0 || strip.rows == 0 {
        return;
    }
    let last = strip.rows - 1;
    assert!(last * strip.a_step + strip.height <= strip.a.len());
    assert!(last * strip.b_step + strip.width <= strip.b.len());
    assert!((strip.height - 1) * strip.y_step + strip.width <= y.len());
    let y = y.as_mut_ptr();
    match isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` found the instructions; all places were checked above.
        Isa::Avx512 => unsafe {
            match vectors {
                1 => add_tiles::<Avx512, 1, 14>(y, strip),
                2 => add_tiles::<Avx512, 2, 14>(y, strip),
                3 => add_tiles::<Avx512, 3, 9>(y, strip),
                _ => add_tiles::<Avx512, 4, 6>(y, strip),
            }
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { add_tiles::<Avx2, 1, 6>(y, strip) },
        // SAFETY: as above.
        Isa::Portable => unsafe { add_tiles::<Portable, 1, 4>(y, strip) },
    }
}

/// One tile, compiled for the instructions of its lanes.
trait Tiles: Lanes {
    /// # Safety
    /// As [`add_tiles`], and the CPU has the instructions.
    unsafe fn tile<const V: usize, const P: usize>(y: *mut f32, strip: &Strip, at: usize);
}

macro_rules! tiles {
    ($lanes:ty $(, $features:literal)?) => {
        impl Tiles for $lanes {
            #[inline]
            unsafe fn tile<const V: usize, const P: usize>(
                y: *mut f32,
                strip: &Strip,
                at: usize,
            ) {
                $(#[target_feature(enable = $features)])?
                unsafe fn compiled<const V: usize, const P: usize>(
                    y: *mut f32,
                    strip: &Strip,
                    at: usize,
                ) {
                    // SAFETY: the caller's promise.
                    unsafe { add_tile::<$lanes, V, P>(y, strip, at) }
                }
                // SAFETY: the caller's promise.
                unsafe { compiled::<V, P>(y, strip, at) }
            }
        }
    };
}

tiles!(Portable);
#[cfg(target_arch = "x86_64")]
tiles!(Avx512, "avx512f,avx512bw,avx512dq,avx512vl,fma");
#[cfg(target_arch = "x86_64")]
tiles!(Avx2, "avx2,fma");

/// Splits the height into tiles of nearly equal size, at most `MOST`.
///
/// # Safety
/// Every place of the strip lies inside its slices; the width is at most 16·V.
unsafe fn add_tiles<L: Tiles, const V: usize, const MOST: usize>(y: *mut f32, strip: &Strip) {
    let mut tiles = strip.height.div_ceil(MOST);
    let mut at = 0;
    while tiles > 0 {
        let count = (strip.height - at).div_ceil(tiles);
        // SAFETY: at..at + count belong to the strip.
        unsafe {
            match count {
                1 => L::tile::<V, 1>(y, strip, at),
                2 => L::tile::<V, 2>(y, strip, at),
                3 => L::tile::<V, 3>(y, strip, at),
                4 => L::tile::<V, 4>(y, strip, at),
                5 if MOST >= 5 => L::tile::<V, 5>(y, strip, at),
                6 if MOST >= 6 => L::tile::<V, 6>(y, strip, at),
                7 if MOST >= 7 => L::tile::<V, 7>(y, strip, at),
                8 if MOST >= 8 => L::tile::<V, 8>(y, strip, at),
                9 if MOST >= 9 => L::tile::<V, 9>(y, strip, at),
                10 if MOST >= 10 => L::tile::<V, 10>(y, strip, at),
                11 if MOST >= 11 => L::tile::<V, 11>(y, strip, at),
                12 if MOST >= 12 => L::tile::<V, 12>(y, strip, at),
                13 if MOST >= 13 => L::tile::<V, 13>(y, strip, at),
                14 if MOST >= 14 => L::tile::<V, 14>(y, strip, at),
                _ => unreachable!("a tile is at most {MOST} high"),
            }
        }
        at += count;
        tiles -= 1;
    }
}

/// # Safety
/// As [`add_tiles`].
#[inline(always)]
unsafe fn add_tile<L: Lanes, const V: usize, const P: usize>(
    y: *mut f32,
    strip: &Strip,
    at: usize,
) {
    // SAFETY: the caller vouches for every place.
    unsafe {
        let rest = strip.width - (V - 1) * 16;
        let mut sums = [[L::splat(0.0); V]; P];
        let (mut a, mut b) = (strip.a.as_ptr().add(at), strip.b.as_ptr());
        for _ in 0..strip.rows {
            // The next tiles' factors of this row: rows lie too far apart for the CPU to foresee.
            prefetch(a.wrapping_add(16));
            let mut row = [L::splat(0.0); V];
            unrolled!(v < V, {
                row[v] = load::<L>(b.add(v * 16), if v + 1 < V { 16 } else { rest });
            });
            unrolled!(p < P, {
                let factor = L::splat(*a.add(p));
                unrolled!(v < V, { sums[p][v] = sums[p][v].fma(factor, row[v]) });
            });
            a = a.wrapping_add(strip.a_step);
            b = b.wrapping_add(strip.b_step);
        }
        unrolled!(p < P, {
            unrolled!(v < V, {
                let count = if v + 1 < V { 16 } else { rest };
                let to = y.add((at + p) * strip.y_step + v * 16);
                store(load::<L>(to, count).add(sums[p][v]), to, count);
            });
        });
    }
}

/// A row of pixels of a depthwise convolution, whose weights get their gradient:
/// y[tap, c] += Σ over pixels p of x[first + p·step + tap + c] · dy[p, c].
pub(crate) struct DepthwiseSums<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) first: usize,
    pub(crate) step: usize,
    /// Per tap, what it adds to a pixel's place, and where its sums begin.
    pub(crate) taps: &'a [(usize, usize)],
    /// [pixel, channel]
    pub(crate) dy: &'a [f32],
    pub(crate) pixels: usize,
    pub(crate) channels: usize,
}

/// Taps that are summed in registers at once.
const TAPS: usize = 9;

/// Adds the row's products to `y`.
///
/// # Panics
/// When the row reaches beyond a slice.
pub(crate) fn add_depthwise(y: &mut [f32], row: &DepthwiseSums) {
    if row.pixels == 0 || row.channels == 0 {
        return;
    }
    let last = row.first + (row.pixels - 1) * row.step;
    let is_inside = |&(tap, sums): &(usize, usize)| {
        last + tap + row.channels <= row.x.len() && sums + row.channels <= y.len()
    };
    assert!(row.taps.iter().all(is_inside) && row.pixels * row.channels <= row.dy.len());
    let y = y.as_mut_ptr();
    for taps in row.taps.chunks(TAPS) {
        match isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `isa` found the instructions; all places were checked above.
            Isa::Avx512 => unsafe { depthwise_avx512(y, row, taps) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { depthwise_avx2(y, row, taps) },
            // SAFETY: as above.
            Isa::Portable => unsafe { depthwise::<Portable>(y, row, taps) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn depthwise_avx512(y: *mut f32, row: &DepthwiseSums, taps: &[(usize, usize)]) {
    // SAFETY: the caller checked every place and the instructions.
    unsafe { depthwise::<Avx512>(y, row, taps) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn depthwise_avx2(y: *mut f32, row: &DepthwiseSums, taps: &[(usize, usize)]) {
    // SAFETY: the caller checked every place and the instructions.
    unsafe { depthwise::<Avx2>(y, row, taps) }
}

/// # Safety
/// Every place that the row names lies inside its slices.
#[inline(always)]
unsafe fn depthwise<L: Lanes>(y: *mut f32, row: &DepthwiseSums, taps: &[(usize, usize)]) {
    for channel in (0..row.channels).step_by(16) {
        let count = (row.channels - channel).min(16);
        // SAFETY: the taps and channels belong to the row.
        unsafe {
            match taps.len() {
                1 => depthwise_tile::<L, 1>(y, row, taps, channel, count),
                2 => depthwise_tile::<L, 2>(y, row, taps, channel, count),
                3 => depthwise_tile::<L, 3>(y, row, taps, channel, count),
                4 => depthwise_tile::<L, 4>(y, row, taps, channel, count),
                5 => depthwise_tile::<L, 5>(y, row, taps, channel, count),
                6 => depthwise_tile::<L, 6>(y, row, taps, channel, count),
                7 => depthwise_tile::<L, 7>(y, row, taps, channel, count),
                8 => depthwise_tile::<L, 8>(y, row, taps, channel, count),
                _ => depthwise_tile::<L, 9>(y, row, taps, channel, count),
            }
        }
    }
}

/// # Safety
/// As [`depthwise`]; there are `T` taps, and `count` channels are left.
#[inline(always)]
unsafe fn depthwise_tile<L: Lanes, const T: usize>(
    y: *mut f32,
    row: &DepthwiseSums,
    taps: &[(usize, usize)],
    channel: usize,
    count: usize,
) {
    // SAFETY: the caller vouches for every place.
    unsafe {
        let mut sums = [L::splat(0.0); T];
        let mut x = row.x.as_ptr().add(row.first + channel);
        let mut dy = row.dy.as_ptr().add(channel);
        for _ in 0..row.pixels {
            let flow = load::<L>(dy, count);
            unrolled!(t < T, {
                sums[t] = sums[t].fma(load::<L>(x.add(taps[t].0), count), flow);
            });
            x = x.wrapping_add(row.step);
            dy = dy.wrapping_add(row.channels);
        }
        unrolled!(t < T, {
            let to = y.add(taps[t].1 + channel);
            store(load::<L>(to, count).add(sums[t]), to, count);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed) * 7919 % 2003) as f32 / 1001.0) - 1.0).collect()
    }

    #[test]
    fn products_of_rows_are_summed_for_every_size() {
        for (m, n, rows) in [(1, 1, 1), (3, 17, 300), (16, 64, 5), (29, 70, 513), (7, 130, 40)] {
            let (a, b) = (numbers(rows * (m + 2), 1), numbers(rows * (n + 1), 2));
            let mut y = numbers(m * n, 3);
            let mut expected: Vec<f64> = y.iter().map(|&y| f64::from(y)).collect();
            for (i, sum) in expected.iter_mut().enumerate() {
                let (p, q) = (i / n, i % n);
                let term = |r: usize| f64::from(a[r * (m + 2) + p]) * f64::from(b[r * (n + 1) + q]);
                *sum += (0..rows).map(term).sum::<f64>();
            }
            let (a, b) = (
                Slab { data: &a, step: m + 2, width: m },
                Slab { data: &b, step: n + 1, width: n },
            );
            add_outer(&mut y, a, b, rows);
            let is_close = |(y, e): (&f32, &f64)| (f64::from(*y) - e).abs() <= 1e-4;
            assert!(y.iter().zip(&expected).all(is_close), "{m} × {n} over {rows}");
        }
    }
}
