//! The folds that reductions are made of, and how they walk over a tensor.

use attar_tensor::Element;

use crate::broadcast::Loops;
use crate::kernels::{elementwise, for_rows_of_work, normalize};
use crate::number::Number;

/// What is kept of the elements seen so far, and what one more makes of it.
pub(crate) trait Fold<T: Copy>: Sync {
    type So: Copy + Send + Sync;

    fn initial(&self) -> Self::So;

    fn step(&self, so: Self::So, x: T) -> Self::So;

    /// A whole row, folded into one.
    fn row(&self, so: Self::So, row: &[T]) -> Self::So {
        row.iter().fold(so, |so, &x| self.step(so, x))
    }

    /// A row, each of its elements folded into its own.
    fn columns(&self, so: &mut [Self::So], row: &[T]) {
        so.iter_mut().zip(row).for_each(|(so, &x)| *so = self.step(*so, x));
    }
}

/// Folds `x` into the elements of `y`, which `loops` tell for every element of `x`.
///
/// Elements are taken in order, whatever the number of threads, and zeros that padding appends
/// change no sum.
pub(crate) fn fold<T: Element, F: Fold<T>>(
    y: &mut [T],
    x: &[T],
    loops: &Loops<1>,
    fold: &F,
    finish: impl Fn(F::So) -> T,
) {
    let mut so = vec![fold.initial(); y.len()];
    let outer = loops.sizes[0];
    if x.is_empty() || y.is_empty() {
        // Nothing to fold.
    } else if loops.strides[0][0] == 0 || loops.sizes.len() == 1 {
        walk(&mut so, x, loops, fold);
    } else {
        // The outermost axis stays: its indices are independent.
        let inner =
            Loops { sizes: loops.sizes[1..].to_vec(), strides: [loops.strides[0][1..].to_vec()] };
        let (so_size, x_size) = (so.len() / outer, x.len() / outer);
        for_rows_of_work(&mut so, so_size, x.len(), |first, so| {
            let parts = so.chunks_exact_mut(so_size).zip(x[first * x_size..].chunks_exact(x_size));
            parts.for_each(|(so, x)| walk(so, x, &inner, fold));
        });
    }
    y.iter_mut().zip(so).for_each(|(y, so)| *y = finish(so));
}

fn walk<T: Copy, F: Fold<T>>(so: &mut [F::So], x: &[T], loops: &Loops<1>, fold: &F) {
    let (size, [stride]) = (loops.inner_size(), loops.inner_strides());
    let mut cursor = loops.cursor(0);
    for row in x.chunks_exact(size) {
        let [at] = cursor.step();
        if stride == 0 {
            so[at] = fold.row(so[at], row);
        } else {
            fold.columns(&mut so[at..at + size], row);
        }
    }
}

macro_rules! folds {
    ($($fold:ident, $initial:ident, |$so:ident, $x:ident| $step:expr;)*) => {$(
        pub(super) struct $fold;

        impl<T: Number> Fold<T> for $fold {
            type So = T;

            fn initial(&self) -> T {
                T::$initial
            }

            fn step(&self, $so: T, $x: T) -> T {
                $step
            }
        }
    )*};
}

folds! {
    Magnitudes, ZERO, |so, x| so.plus(x.magnitude());
    Max, LEAST, |so, x| so.greater(x);
    Min, GREATEST, |so, x| so.lesser(x);
    Product, ONE, |so, x| so.times(x);
    Squares, ZERO, |so, x| so.plus(x.times(x));
    Sum, ZERO, |so, x| so.plus(x);
}

/// The greatest x, and Σ exp(x − greatest).
pub(super) struct Exponentials;

impl<T: Number> Fold<T> for Exponentials {
    type So = (f64, f64);

    fn initial(&self) -> (f64, f64) {
        (f64::NEG_INFINITY, 0.0)
    }

    fn step(&self, (max, sum): (f64, f64), x: T) -> (f64, f64) {
        let x = x.as_f64();
        if x == f64::NEG_INFINITY {
            (max, sum)
        } else if x > max {
            (x, sum * (max - x).exp() + 1.0)
        } else if x == max {
            (max, sum + 1.0)
        } else {
            (max, sum + (x - max).exp())
        }
    }
}

/// A sum of f32, in vector code.
pub(crate) struct F32Sum;

impl Fold<f32> for F32Sum {
    type So = f32;

    fn initial(&self) -> f32 {
        0.0
    }

    fn step(&self, so: f32, x: f32) -> f32 {
        so + x
    }

    fn row(&self, so: f32, row: &[f32]) -> f32 {
        so + normalize::sum_row(row)
    }

    fn columns(&self, so: &mut [f32], row: &[f32]) {
        elementwise::add_assign(so, row);
    }
}

/// A sum of squares of f32, in vector code.
pub(super) struct F32Squares;

impl Fold<f32> for F32Squares {
    type So = f32;

    fn initial(&self) -> f32 {
        0.0
    }

    fn step(&self, so: f32, x: f32) -> f32 {
        so + x * x
    }

    fn row(&self, so: f32, row: &[f32]) -> f32 {
        so + normalize::sum_squares_row(row)
    }
}

/// The greatest f32, in vector code.
pub(super) struct F32Max;

impl Fold<f32> for F32Max {
    type So = f32;

    fn initial(&self) -> f32 {
        f32::NEG_INFINITY
    }

    fn step(&self, so: f32, x: f32) -> f32 {
        so.greater(x)
    }

    fn row(&self, so: f32, row: &[f32]) -> f32 {
        so.greater(elementwise::greatest(row))
    }

    fn columns(&self, so: &mut [f32], row: &[f32]) {
        elementwise::greater_in_place(so, row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_on_both_sides_of_a_kept_one_are_folded() {
        let x: Vec<i32> = (0..24).collect();
        let loops = Loops::new([&[1, 3, 1]], &[2, 3, 4]);
        let mut y = [0; 3];
        fold(&mut y, &x, &loops, &Sum, |sum| sum);
        assert_eq!(y, [60, 92, 124]);
    }

    #[test]
    fn a_logarithm_of_exponentials_does_not_overflow() {
        let step = |so, x: f64| Exponentials.step(so, x);
        let (max, sum) = [1000.0, f64::NEG_INFINITY, 1000.0, 999.0]
            .into_iter()
            .fold(Fold::<f64>::initial(&Exponentials), step);
        assert!((max + sum.ln() - 1_000.861_994_8).abs() < 1e-6);
    }
}
