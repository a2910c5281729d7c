//! From the sums of a tile to its results: y = activation(sums·scales + bias), as f32 or as
//! levels clamp(round(y / scale) + zero point).

use super::super::math;
use super::vector::{Floats, Sums};
use super::{Division, Job, Levels, Out};

/// Which part of the result a tile is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) first_column: usize,
    pub(super) columns: usize,
}

/// An activation on vectors side by side. Each of its steps is done on all of them before the next,
/// so that none waits for the one before.
pub(super) trait Apply<F: Floats> {
    unsafe fn apply<const W: usize>(&self, x: [F; W]) -> [F; W];
}

pub(super) struct Identity;

impl<F: Floats> Apply<F> for Identity {
    #[inline(always)]
    unsafe fn apply<const W: usize>(&self, x: [F; W]) -> [F; W] {
        x
    }
}

pub(super) struct Clip<F>(pub(super) [F; 2]);

impl<F: Floats> Apply<F> for Clip<F> {
    #[inline(always)]
    unsafe fn apply<const W: usize>(&self, mut x: [F; W]) -> [F; W] {
        for x in &mut x {
            // SAFETY: as the caller's.
            *x = unsafe { x.clipped(self.0[0], self.0[1]) };
        }
        x
    }
}

/// sums ← sums·u + coefficient, for all coefficients behind the first, with which the sums begin.
#[inline(always)]
unsafe fn polynomial<F: Floats, const W: usize>(u: [F; W], coefficients: &[f32]) -> [F; W] {
    // SAFETY: as the caller's.
    unsafe {
        let mut sums = [F::splat(coefficients[0]); W];
        for &coefficient in &coefficients[1..] {
            for (sum, u) in sums.iter_mut().zip(u) {
                *sum = sum.fma(u, F::splat(coefficient));
            }
        }
        sums
    }
}

/// The operations of [`math::gelu`], in its order.
pub(super) struct Gelu;

impl<F: Floats> Apply<F> for Gelu {
    #[inline(always)]
    unsafe fn apply<const W: usize>(&self, mut x: [F; W]) -> [F; W] {
        // SAFETY: as the caller's.
        unsafe {
            let end = F::splat(math::ERF_END);
            let (mut z, mut a, mut u) = (x, x, x);
            for i in 0..W {
                z[i] = x[i].mul(F::splat(std::f32::consts::FRAC_1_SQRT_2));
                a[i] = z[i].clipped(F::splat(-math::ERF_END), end);
                let factor = F::splat(2.0 / (math::ERF_END * math::ERF_END));
                u[i] = a[i].mul(a[i]).fma(factor, F::splat(-1.0));
            }
            let sums = polynomial(u, &math::ERF);
            for i in 0..W {
                let half = x[i].mul(F::splat(0.5));
                let erf = z[i].unit_beyond(end, a[i].mul(sums[i]));
                x[i] = half.fma(erf, half);
            }
            x
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
    unsafe fn apply<const W: usize>(&self, mut x: [F; W]) -> [F; W] {
        // SAFETY: as the caller's.
        unsafe {
            let (mut a, mut u) = (x, x);
            for i in 0..W {
                a[i] = x[i].clipped(F::splat(-COARSE_END), F::splat(COARSE_END));
                let factor = F::splat(2.0 / (COARSE_END * COARSE_END));
                u[i] = a[i].mul(a[i]).fma(factor, F::splat(-1.0));
            }
            let sums = polynomial(u, &COARSE);
            for i in 0..W {
                x[i] = x[i].mul(a[i].fma(sums[i], F::splat(0.5)));
            }
            x
        }
    }
}

/// What becomes of y, of vectors side by side.
trait Put<F: Floats> {
    /// # Safety
    /// That of the floats, and results that have `count` places from `index` on: those of all the
    /// vectors, or of a part of a single one.
    unsafe fn put<const W: usize>(
        &self,
        y: [F; W],
        columns: &Columns<F, W>,
        index: usize,
        count: usize,
    );
}

/// As it is.
#[derive(Clone, Copy)]
struct AsFloats(*mut f32);

impl<F: Floats> Put<F> for AsFloats {
    #[inline(always)]
    unsafe fn put<const W: usize>(&self, y: [F; W], _: &Columns<F, W>, index: usize, count: usize) {
        // SAFETY: as the caller's; a part is copied out of a whole vector.
        unsafe {
            let to = self.0.add(index);
            if count < F::LANES {
                let mut part = [0.0_f32; LANES_MAX];
                y[0].store(part.as_mut_ptr());
                return std::ptr::copy_nonoverlapping(part.as_ptr(), to, count);
            }
            for (i, y) in y.into_iter().enumerate() {
                y.store(to.add(i * F::LANES));
            }
        }
    }
}

/// Rounded to levels, after what is left of the division.
#[derive(Clone, Copy)]
struct AsLevels<D> {
    out: *mut u8,
    zero_point: i32,
    division: D,
}

/// What is left of the division by the scale of the levels.
trait Divide<F: Floats> {
    unsafe fn divide(&self, y: F, factor: F) -> F;
}

#[derive(Clone, Copy)]
struct Done;
#[derive(Clone, Copy)]
struct By;
#[derive(Clone, Copy)]
struct Times;

impl<F: Floats> Divide<F> for Done {
    #[inline(always)]
    unsafe fn divide(&self, y: F, _: F) -> F {
        y
    }
}

impl<F: Floats> Divide<F> for By {
    #[inline(always)]
    unsafe fn divide(&self, y: F, factor: F) -> F {
        // SAFETY: as the caller's.
        unsafe { y.div(factor) }
    }
}

impl<F: Floats> Divide<F> for Times {
    #[inline(always)]
    unsafe fn divide(&self, y: F, factor: F) -> F {
        // SAFETY: as the caller's.
        unsafe { y.mul(factor) }
    }
}

impl<F: Floats, D: Divide<F>> Put<F> for AsLevels<D> {
    #[inline(always)]
    unsafe fn put<const W: usize>(
        &self,
        mut y: [F; W],
        columns: &Columns<F, W>,
        index: usize,
        count: usize,
    ) {
        // SAFETY: as the caller's; a part is copied out of a whole vector.
        unsafe {
            for (i, y) in y.iter_mut().enumerate() {
                let x = self.division.divide(*y, columns.factors[i]);
                *y = x.at_least(columns.lows[i]).at_most(columns.highs[i]);
            }
            let to = self.out.add(index);
            if count < F::LANES {
                let mut part = [0_u8; LANES_MAX];
                y[0].store_levels(self.zero_point, part.as_mut_ptr());
                return std::ptr::copy_nonoverlapping(part.as_ptr(), to, count);
            }
            F::store_levels_of(y, self.zero_point, to);
        }
    }
}

/// The most lanes that vectors have.
const LANES_MAX: usize = 16;

/// What the columns of vectors side by side have for every row, held in registers.
#[derive(Clone, Copy)]
struct Columns<F, const W: usize> {
    scales: [F; W],
    bias: [F; W],
    /// What y is divided or multiplied by before it is rounded.
    factors: [F; W],
    lows: [F; W],
    highs: [F; W],
}

/// `W` vectors from an index on.
#[inline(always)]
unsafe fn vectors<F: Floats, const W: usize>(values: &[f32], first: usize) -> [F; W] {
    let from = values[first..].as_ptr();
    // SAFETY: as the caller's.
    unsafe {
        let mut vectors = [F::load(from); W];
        for (i, vector) in vectors.iter_mut().enumerate().skip(1) {
            *vector = F::load(from.add(i * F::LANES));
        }
        vectors
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
            let out = match self.job.out {
                Out::F32(out) => return self.each::<T, A, _>(sums, activation, &AsFloats(out)),
                Out::U8(out) => out,
                Out::I32(out) => return self.store_sums::<T>(sums, out),
            };
            match self.job.product.levels.division {
                Division::Done => {
                    let put = AsLevels { out, zero_point, division: Done };
                    self.each::<T, A, _>(sums, activation, &put);
                }
                Division::By => {
                    let put = AsLevels { out, zero_point, division: By };
                    self.each::<T, A, _>(sums, activation, &put);
                }
                Division::Times => {
                    let put = AsLevels { out, zero_point, division: Times };
                    self.each::<T, A, _>(sums, activation, &put);
                }
            }
        }
    }

    /// Puts y of every vector: those of a row of a whole panel together, others one by one.
    #[inline(always)]
    unsafe fn each<T: Sums, A: Apply<T::Floats>, P: Put<T::Floats>>(
        self,
        sums: *const i32,
        activation: &A,
        put: &P,
    ) {
        let columns = self.place.columns;
        let wide = columns.div_ceil(T::LANES);
        // SAFETY: as the caller's.
        unsafe {
            if columns == T::WIDE * T::LANES {
                match T::WIDE {
                    4 => return self.strip::<T, A, P, 4>(sums, (0, wide), activation, put),
                    2 => return self.strip::<T, A, P, 2>(sums, (0, wide), activation, put),
                    _ => {}
                }
            }
            for w in 0..wide {
                self.strip::<T, A, P, 1>(sums, (w, wide), activation, put);
            }
        }
    }

    /// Puts y of `W` vectors of each row, from vector `w` of `wide` on.
    #[inline(always)]
    unsafe fn strip<T: Sums, A: Apply<T::Floats>, P: Put<T::Floats>, const W: usize>(
        self,
        sums: *const i32,
        (w, wide): (usize, usize),
        activation: &A,
        put: &P,
    ) {
        // SAFETY: as the caller's; what columns have is padded to whole vectors.
        unsafe {
            let columns = self.columns::<T, W>(w);
            let count = self.place.columns - w * T::LANES;
            for row in 0..self.place.rows {
                let from = sums.add((row * wide + w) * T::LANES);
                let mut y = columns.bias;
                for (i, y) in y.iter_mut().enumerate() {
                    let sums = T::load(from.add(i * T::LANES)).floats();
                    *y = sums.fma(columns.scales[i], *y);
                }
                put.put(activation.apply(y), &columns, self.index::<T>(row, w), count);
            }
        }
    }

    /// As [`run`](Self::run), by a function over slices.
    #[inline(always)]
    pub(super) unsafe fn run_each<T: Sums>(self, sums: *mut i32, function: fn(&mut [f32])) {
        let wide = self.place.columns.div_ceil(T::LANES);
        let vectors = self.place.rows * wide;
        let Levels { division, zero_point } = self.job.product.levels;
        // SAFETY: as the caller's; f32 take the places of the sums they come from.
        unsafe {
            for i in 0..vectors {
                let (at, columns) = (sums.add(i * T::LANES), self.columns::<T, 1>(i % wide));
                let y = T::load(at).floats().fma(columns.scales[0], columns.bias[0]);
                y.store(at.cast());
            }
            function(std::slice::from_raw_parts_mut(sums.cast(), vectors * T::LANES));
            for i in 0..vectors {
                let (row, w) = (i / wide, i % wide);
                let y = [T::Floats::load(sums.add(i * T::LANES).cast())];
                let (columns, index) = (&self.columns::<T, 1>(w), self.index::<T>(row, w));
                let count = self.place.columns - w * T::LANES;
                let out = match self.job.out {
                    Out::F32(out) => {
                        AsFloats(out).put(y, columns, index, count);
                        continue;
                    }
                    Out::U8(out) => out,
                    Out::I32(_) => unreachable!("sums are not rounded"),
                };
                match division {
                    Division::Done => {
                        AsLevels { out, zero_point, division: Done }.put(y, columns, index, count);
                    }
                    Division::By => {
                        AsLevels { out, zero_point, division: By }.put(y, columns, index, count);
                    }
                    Division::Times => {
                        AsLevels { out, zero_point, division: Times }.put(y, columns, index, count);
                    }
                }
            }
        }
    }

    /// The sums as they are.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    #[inline(always)]
    pub(super) unsafe fn store_sums<T: Sums>(self, sums: *const i32, out: *mut i32) {
        let columns = self.place.columns;
        let width = columns.next_multiple_of(T::LANES);
        for row in 0..self.place.rows {
            // SAFETY: as the caller's: a row of the tile has `width` sums, one of the results room
            // for the place's columns.
            unsafe {
                let to = out.add(self.index::<T>(row, 0));
                std::ptr::copy_nonoverlapping(sums.add(row * width), to, columns);
            }
        }
    }

    #[inline(always)]
    unsafe fn columns<T: Sums, const W: usize>(self, w: usize) -> Columns<T::Floats, W> {
        let product = self.job.product;
        let first = self.place.first_column + w * T::LANES;
        let [lows, highs] = &product.level_ends;
        // SAFETY: as the caller's; all of these are padded to whole vectors.
        unsafe {
            Columns {
                scales: vectors(&product.scales, first),
                bias: vectors(&product.bias, first),
                factors: vectors(&product.level_factors, first),
                lows: vectors(lows, first),
                highs: vectors(highs, first),
            }
        }
    }

    /// Of a vector's first value in the results.
    #[inline(always)]
    fn index<T: Sums>(self, row: usize, w: usize) -> usize {
        let column = self.place.first_column + w * T::LANES;
        (self.place.row + row) * self.job.out_stride + column
    }
}
