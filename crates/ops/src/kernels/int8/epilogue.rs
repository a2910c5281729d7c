//! From the sums of a tile to its results: y = activation(sums·scales + bias), as f32 or as
//! levels clamp(round(y / scale) + zero point).

use super::super::math;
use super::vector::{Floats, Sums};
use super::{Division, Job, Out};

/// Which part of the result a tile is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) first_column: usize,
    pub(super) columns: usize,
}

/// An activation on a vector.
pub(super) trait Apply<F: Floats> {
    unsafe fn apply(&self, x: F) -> F;
}

pub(super) struct Identity;

impl<F: Floats> Apply<F> for Identity {
    #[inline(always)]
    unsafe fn apply(&self, x: F) -> F {
        x
    }
}

pub(super) struct Clip<F>(pub(super) [F; 2]);

impl<F: Floats> Apply<F> for Clip<F> {
    #[inline(always)]
    unsafe fn apply(&self, x: F) -> F {
        // SAFETY: as the caller's.
        unsafe { x.clipped(self.0[0], self.0[1]) }
    }
}

/// The operations of [`math::gelu`], in its order.
pub(super) struct Gelu;

impl<F: Floats> Apply<F> for Gelu {
    #[inline(always)]
    unsafe fn apply(&self, x: F) -> F {
        // SAFETY: as the caller's.
        unsafe {
            let splat = |value: f32| F::splat(value);
            let end = splat(math::ERF_END);
            let half = x.mul(splat(0.5));
            let z = x.mul(splat(std::f32::consts::FRAC_1_SQRT_2));
            let a = z.clipped(splat(-math::ERF_END), end);
            let factor = splat(2.0 / (math::ERF_END * math::ERF_END));
            let u = a.mul(a).fma(factor, splat(-1.0));
            let mut sum = splat(math::ERF[0]);
            for &coefficient in &math::ERF[1..] {
                sum = sum.fma(u, splat(coefficient));
            }
            let erf = z.unit_beyond(end, a.mul(sum));
            half.fma(erf, half)
        }
    }
}

/// GELU within 3.5e-5, for levels alone: x·(½ + a·P(2a²/4.5² − 1)), a = x within ±4.5.
///
/// P is a least-maximum fit of degree 8 made for this file. It takes two thirds of the time of
/// [`Gelu`], where that is a fifth of the product's.
pub(super) struct CoarseGelu;

/// How far [`CoarseGelu`] is off at most.
const COARSE_ERROR: f32 = 3.5e-5;

/// Whether [`CoarseGelu`] is within a hundredth of a level on average over the columns, and within a
/// thirtieth in each.
pub(super) fn is_coarse_enough(scales: &[f32]) -> bool {
    let levels = scales.iter().map(|scale| COARSE_ERROR / scale);
    let is_near = levels.clone().all(|levels| (0.0..=1.0 / 30.0).contains(&levels));
    is_near && levels.sum::<f32>() <= 0.01 * scales.len() as f32
}

const COARSE_END: f32 = 4.5;
#[allow(clippy::excessive_precision, clippy::unreadable_literal)] // coefficients as fitted
const COARSE: [f32; 9] = [
    3.313751193e-3,
    -9.314945899e-3,
    1.227283012e-2,
    -1.676194929e-2,
    2.759797312e-2,
    -4.054935277e-2,
    5.482329801e-2,
    -7.717249542e-2,
    1.569020003e-1,
];

impl<F: Floats> Apply<F> for CoarseGelu {
    #[inline(always)]
    unsafe fn apply(&self, x: F) -> F {
        // SAFETY: as the caller's.
        unsafe {
            let splat = |value: f32| F::splat(value);
            let a = x.clipped(splat(-COARSE_END), splat(COARSE_END));
            let factor = splat(2.0 / (COARSE_END * COARSE_END));
            let u = a.mul(a).fma(factor, splat(-1.0));
            let mut sum = splat(COARSE[0]);
            for &coefficient in &COARSE[1..] {
                sum = sum.fma(u, splat(coefficient));
            }
            x.mul(a.fma(sum, splat(0.5)))
        }
    }
}

/// The steps from sums to results of one tile.
#[derive(Clone, Copy)]
pub(super) struct Chain<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) place: Place,
}

impl Chain<'_> {
    /// # Safety
    /// Needs the instruction set of `T`, `sums` of the place's rows in whole vectors, and a job
    /// whose pointers hold what it says.
    #[inline(always)]
    pub(super) unsafe fn run<T: Sums, A: Apply<T::Floats>>(self, sums: *const i32, activation: &A) {
        let zero_point = self.job.product.levels.zero_point;
        // What is decided once is not asked for every vector.
        // SAFETY: as the caller's.
        unsafe {
            if let Some(out) = self.job.out_f32 {
                return self
                    .each::<T, A>(sums, activation, |y, _, place| put_f32::<T>(y, out, place));
            }
            let Some(out) = self.job.out_u8 else { return };
            match self.job.product.levels.division {
                Division::Done => self.each::<T, A>(sums, activation, |x, columns, place| {
                    put_levels::<T>(x, columns.ends, zero_point, out, place);
                }),
                Division::By => self.each::<T, A>(sums, activation, |y, columns, place| {
                    put_levels::<T>(y.div(columns.factor), columns.ends, zero_point, out, place);
                }),
                Division::Times => self.each::<T, A>(sums, activation, |y, columns, place| {
                    put_levels::<T>(y.mul(columns.factor), columns.ends, zero_point, out, place);
                }),
            }
        }
    }

    /// Calls `put` with y of every vector.
    #[inline(always)]
    unsafe fn each<T: Sums, A: Apply<T::Floats>>(
        self,
        sums: *const i32,
        activation: &A,
        put: impl Fn(T::Floats, Columns<T::Floats>, Vector),
    ) {
        let wide = self.place.columns.div_ceil(T::LANES);
        for w in 0..wide {
            // SAFETY: as the caller's.
            unsafe {
                let columns = self.columns::<T>(w);
                for row in 0..self.place.rows {
                    let sums = T::load(sums.add((row * wide + w) * T::LANES));
                    let y = activation.apply(sums.floats().fma(columns.scale, columns.bias));
                    put(y, columns, self.at::<T>(row, w));
                }
            }
        }
    }

    /// As [`run`](Self::run), by a function over slices.
    #[inline(always)]
    pub(super) unsafe fn run_each<T: Sums>(self, sums: *mut i32, function: fn(&mut [f32])) {
        let wide = self.place.columns.div_ceil(T::LANES);
        let count = self.place.rows * wide;
        let levels = self.job.product.levels;
        // SAFETY: as the caller's; f32 take the places of the sums they come from.
        unsafe {
            for i in 0..count {
                let (at, columns) = (sums.add(i * T::LANES), self.columns::<T>(i % wide));
                T::load(at).floats().fma(columns.scale, columns.bias).store(at.cast());
            }
            function(std::slice::from_raw_parts_mut(sums.cast(), count * T::LANES));
            for i in 0..count {
                let y = T::Floats::load(sums.add(i * T::LANES).cast());
                let (columns, place) =
                    (self.columns::<T>(i % wide), self.at::<T>(i / wide, i % wide));
                if let Some(out) = self.job.out_f32 {
                    put_f32::<T>(y, out, place);
                }
                if let Some(out) = self.job.out_u8 {
                    let x = match levels.division {
                        Division::Done => y,
                        Division::By => y.div(columns.factor),
                        Division::Times => y.mul(columns.factor),
                    };
                    put_levels::<T>(x, columns.ends, levels.zero_point, out, place);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn columns<T: Sums>(self, w: usize) -> Columns<T::Floats> {
        let product = self.job.product;
        let first = self.place.first_column + w * T::LANES;
        // SAFETY: as the caller's; all of these are padded to whole vectors.
        let of = |values: &[f32]| unsafe { T::Floats::load(values.as_ptr().add(first)) };
        Columns {
            scale: of(&product.scales),
            bias: of(&product.bias),
            factor: of(&product.level_factors),
            ends: [of(&product.level_ends[0]), of(&product.level_ends[1])],
        }
    }

    #[inline(always)]
    fn at<T: Sums>(self, row: usize, w: usize) -> Vector {
        let column = self.place.first_column + w * T::LANES;
        Vector {
            index: (self.place.row + row) * self.job.out_stride + column,
            count: T::LANES.min(self.place.columns - w * T::LANES),
        }
    }
}

/// What a vector of columns has for every row.
#[derive(Clone, Copy)]
struct Columns<F> {
    scale: F,
    bias: F,
    /// What y is divided or multiplied by before it is rounded.
    factor: F,
    ends: [F; 2],
}

/// Where a vector of results goes.
#[derive(Clone, Copy)]
struct Vector {
    /// Of the first of its values in the results.
    index: usize,
    /// How many of its lanes are results.
    count: usize,
}

#[inline(always)]
unsafe fn put_f32<T: Sums>(y: T::Floats, out: Out<f32>, place: Vector) {
    // SAFETY: as the caller's.
    unsafe {
        let to = out.0.add(place.index);
        if place.count == T::LANES {
            y.store(to);
        } else {
            let mut part = [0.0_f32; 16];
            y.store(part.as_mut_ptr());
            std::ptr::copy_nonoverlapping(part.as_ptr(), to, place.count);
        }
    }
}

/// Rounds what is divided already.
#[inline(always)]
unsafe fn put_levels<T: Sums>(
    x: T::Floats,
    [low, high]: [T::Floats; 2],
    zero_point: i32,
    out: Out<u8>,
    place: Vector,
) {
    // SAFETY: as the caller's.
    unsafe {
        let x = x.at_least(low).at_most(high);
        let to = out.0.add(place.index);
        if place.count == T::LANES {
            x.store_levels(zero_point, to);
        } else {
            let mut part = [0_u8; 16];
            x.store_levels(zero_point, part.as_mut_ptr());
            std::ptr::copy_nonoverlapping(part.as_ptr(), to, place.count);
        }
    }
}
