//! Windows slid over one row: several input rows are joined into one, padded; then each output
//! joins the taps of its window.

use super::vectorized;

/// How an operation joins two values, and what it starts from.
pub(crate) trait Join<T> {
    /// What changes no other value: padding.
    const NEUTRAL: T;
    fn join(a: T, b: T) -> T;
}

/// The greater of two; NaN loses.
pub(crate) struct Greater;

/// The sum of two.
pub(crate) struct Sum;

macro_rules! joins {
    ($($ty:ident: $least:expr;)*) => {$(
        impl Join<$ty> for Greater {
            const NEUTRAL: $ty = $least;

            #[inline(always)]
            fn join(a: $ty, b: $ty) -> $ty {
                if b > a { b } else { a }
            }
        }

        impl Join<$ty> for Sum {
            const NEUTRAL: $ty = 0 as $ty;

            #[inline(always)]
            fn join(a: $ty, b: $ty) -> $ty {
                a + b
            }
        }
    )*};
}

joins! {
    f32: f32::NEG_INFINITY;
    f64: f64::NEG_INFINITY;
    u8: u8::MIN;
    i8: i8::MIN;
}

/// A window along the last axis.
#[derive(Clone, Copy)]
pub(crate) struct Slide {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) dilation: usize,
    pub(crate) pad: usize,
}

impl Slide {
    /// Elements of a padded row under `output` windows.
    pub(crate) fn padded_size(&self, output: usize) -> usize {
        output * self.stride + (self.kernel - 1) * self.dilation
    }
}

/// Joins rows of one length into the padded row, from `pad` on.
#[inline(always)]
fn join_rows<T: Copy, J: Join<T>>(padded: &mut [T], rows: &[&[T]], pad: usize) {
    let width = rows.first().map_or(0, |row| row.len());
    // A row may reach behind the last window.
    let width = width.min(padded.len().saturating_sub(pad));
    let (head, rest) = padded.split_at_mut(pad.min(padded.len()));
    let (middle, tail) = rest.split_at_mut(width);
    head.fill(J::NEUTRAL);
    tail.fill(J::NEUTRAL);
    let (mut chunks, leading) = match rows {
        [] => return,
        [a, b, c, rest @ ..] => {
            for (((out, &a), &b), &c) in middle.iter_mut().zip(*a).zip(*b).zip(*c) {
                *out = J::join(J::join(J::join(J::NEUTRAL, a), b), c);
            }
            (rest, 3)
        }
        [a, rest @ ..] => {
            for (out, &a) in middle.iter_mut().zip(*a) {
                *out = J::join(J::NEUTRAL, a);
            }
            (rest, 1)
        }
    };
    debug_assert!(leading <= rows.len());
    while let [row, rest @ ..] = chunks {
        for (out, &value) in middle.iter_mut().zip(*row) {
            *out = J::join(*out, value);
        }
        chunks = rest;
    }
}

/// Joins the taps of every window, for a stride known to the compiler.
#[inline(always)]
fn join_taps<T: Copy, J: Join<T>, const STRIDE: usize>(out: &mut [T], padded: &[T], slide: Slide) {
    let tap = |index: usize| {
        let (steps, _) = padded[index * slide.dilation..].as_chunks::<STRIDE>();
        &steps[..out.len()]
    };
    match slide.kernel {
        2 => {
            let (a, b) = (tap(0), tap(1));
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                *out = J::join(a[0], b[0]);
            }
        }
        3 => {
            let (a, b, c) = (tap(0), tap(1), tap(2));
            for (((out, a), b), c) in out.iter_mut().zip(a).zip(b).zip(c) {
                *out = J::join(J::join(a[0], b[0]), c[0]);
            }
        }
        kernel => {
            let first = tap(0);
            for (out, value) in out.iter_mut().zip(first) {
                *out = value[0];
            }
            for index in 1..kernel {
                let (steps, _) = padded[index * slide.dilation..].as_chunks::<STRIDE>();
                for (out, value) in out.iter_mut().zip(steps) {
                    *out = J::join(*out, value[0]);
                }
            }
        }
    }
}

#[inline(always)]
fn pool_row<T: Copy, J: Join<T>>(out: &mut [T], padded: &mut [T], rows: &[&[T]], slide: Slide) {
    join_rows::<T, J>(padded, rows, slide.pad);
    match slide.stride {
        1 => join_taps::<T, J, 1>(out, padded, slide),
        2 => join_taps::<T, J, 2>(out, padded, slide),
        stride => {
            for (index, out) in out.iter_mut().enumerate() {
                let start = index * stride;
                let taps = padded[start..].iter().step_by(slide.dilation).take(slide.kernel);
                *out = taps.fold(J::NEUTRAL, |joined, &tap| J::join(joined, tap));
            }
        }
    }
}

macro_rules! pool_rows {
    ($($name:ident: $ty:ty, $join:ty;)*) => {
        vectorized! {$(
            /// One output row of the windows over `rows`.
            pub(crate) fn $name<FMA>(
                out: &mut [$ty],
                padded: &mut [$ty],
                rows: &[&[$ty]],
                slide: Slide,
            ) {
                pool_row::<$ty, $join>(out, padded, rows, slide);
            }
        )*}
    };
}

pool_rows! {
    greatest_f32: f32, Greater;
    greatest_f64: f64, Greater;
    greatest_i8: i8, Greater;
    greatest_u8: u8, Greater;
    sums_f32: f32, Sum;
    sums_f64: f64, Sum;
}

vectorized! {
    /// out ← out / (rows · columns), element by element.
    pub(crate) fn divide_counts<FMA>(out: &mut [f32], rows: f32, columns: &[f32]) {
        for (out, &columns) in out.iter_mut().zip(columns) {
            *out /= rows * columns;
        }
    }
}
