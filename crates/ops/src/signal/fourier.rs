//! The discrete Fourier transform of any length, in f64.
//!
//! X[k] = Σ x[n]·w^(kn), w = e^(−2πi/N). Lengths with small prime factors are split by them (Cooley
//! and Tukey); others are made a circular convolution of a length that is a power of two
//! (Bluestein: kn = (k² + n² − (k − n)²) / 2).

use std::f64::consts::PI;
use std::ops::{Add, Mul};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Complex {
    pub(super) re: f64,
    pub(super) im: f64,
}

impl Complex {
    /// e^(−2πi·turns).
    fn turned(numerator: usize, denominator: usize) -> Self {
        let angle = -2.0 * PI * (numerator as f64 / denominator as f64);
        Self { re: angle.cos(), im: angle.sin() }
    }

    pub(super) fn conjugate(self) -> Self {
        Self { re: self.re, im: -self.im }
    }
}

impl Add for Complex {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }
}

impl Mul for Complex {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        Self {
            re: self.re * other.re - self.im * other.im,
            im: self.re * other.im + self.im * other.re,
        }
    }
}

/// Largest prime factor that a length is split by.
const FACTOR_MAX: usize = 31;

/// A length made ready.
pub(super) struct Fourier {
    size: usize,
    method: Method,
}

enum Method {
    Split { factors: Vec<usize>, roots: Vec<Complex> },
    Convolve { inner: Box<Fourier>, chirp: Vec<Complex>, kernel: Vec<Complex> },
}

impl Fourier {
    /// `size` is above 0, and small enough that a signal of it is in memory.
    pub(super) fn new(size: usize) -> Self {
        let method = match factors(size) {
            Some(factors) => {
                let roots = (0..size).map(|j| Complex::turned(j, size)).collect();
                Method::Split { factors, roots }
            }
            None => convolution(size),
        };
        Self { size, method }
    }

    /// The transform of `x`, which has the size made ready.
    pub(super) fn forward(&self, x: &[Complex]) -> Vec<Complex> {
        let mut y = vec![Complex::default(); self.size];
        match &self.method {
            Method::Split { factors, roots } => split(x, 1, &mut y, factors, roots),
            Method::Convolve { inner, chirp, kernel } => {
                let mut a = vec![Complex::default(); inner.size];
                for ((a, &x), &w) in a.iter_mut().zip(x).zip(chirp) {
                    *a = x * w;
                }
                let mut product = inner.forward(&a);
                product.iter_mut().zip(kernel).for_each(|(a, &b)| *a = *a * b);
                let convolved = inner.inverse(&product);
                for ((y, &c), &w) in y.iter_mut().zip(&convolved).zip(chirp) {
                    *y = c * w;
                }
            }
        }
        y
    }

    /// The inverse transform: the conjugate of the conjugate's, divided by the size.
    pub(super) fn inverse(&self, x: &[Complex]) -> Vec<Complex> {
        let conjugates: Vec<Complex> = x.iter().map(|x| x.conjugate()).collect();
        let scale = 1.0 / self.size as f64;
        let scaled = |y: Complex| Complex { re: y.re * scale, im: -y.im * scale };
        self.forward(&conjugates).into_iter().map(scaled).collect()
    }
}

/// Small factors of `size`, fours first; `None` if something greater is left.
fn factors(size: usize) -> Option<Vec<usize>> {
    let (mut factors, mut rest) = (Vec::new(), size);
    for factor in [4, 2].into_iter().chain((3..=FACTOR_MAX).step_by(2)) {
        while rest.is_multiple_of(factor) {
            factors.push(factor);
            rest /= factor;
        }
    }
    (rest == 1).then_some(factors)
}

fn convolution(size: usize) -> Method {
    let inner = Fourier::new((2 * size - 1).next_power_of_two());
    // n² only counts modulo 2N, which keeps the angle exact.
    let square = |n: usize| (n as u128 * n as u128 % (2 * size as u128)) as usize;
    let chirp: Vec<Complex> = (0..size).map(|n| Complex::turned(square(n), 2 * size)).collect();
    let mut kernel = vec![Complex::default(); inner.size];
    for (n, w) in chirp.iter().enumerate() {
        kernel[n] = w.conjugate();
        kernel[(inner.size - n) % inner.size] = w.conjugate();
    }
    let kernel = inner.forward(&kernel);
    Method::Convolve { inner: Box::new(inner), chirp, kernel }
}

/// Transforms every `step`th element of `x` into `y`, by the factors of its size.
fn split(x: &[Complex], step: usize, y: &mut [Complex], factors: &[usize], roots: &[Complex]) {
    let Some((&factor, rest)) = factors.split_first() else {
        y[0] = x[0];
        return;
    };
    let part = y.len() / factor;
    for q in 0..factor {
        split(&x[q * step..], step * factor, &mut y[q * part..][..part], rest, roots);
    }
    let root = |exponent: usize| roots[exponent % roots.len()];
    let mut terms = [Complex::default(); FACTOR_MAX];
    for k in 0..part {
        for (q, term) in terms[..factor].iter_mut().enumerate() {
            *term = y[q * part + k] * roots[q * k * step];
        }
        match &terms[..factor] {
            &[a, b] => {
                y[k] = a + b;
                y[part + k] = Complex { re: a.re - b.re, im: a.im - b.im };
            }
            &[a, b, c, d] => {
                let (even, odd) = (a + c, b + d);
                let diff = Complex { re: a.re - c.re, im: a.im - c.im };
                // −i·(b − d)
                let turned = Complex { re: b.im - d.im, im: d.re - b.re };
                y[k] = even + odd;
                y[part + k] = diff + turned;
                y[2 * part + k] = Complex { re: even.re - odd.re, im: even.im - odd.im };
                y[3 * part + k] = Complex { re: diff.re - turned.re, im: diff.im - turned.im };
            }
            terms => {
                let stride = roots.len() / factor;
                for r in 0..factor {
                    let products = terms.iter().enumerate();
                    y[r * part + k] = products.fold(Complex::default(), |sum, (q, &term)| {
                        sum + term * root(q * r % factor * stride)
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(x: &[Complex]) -> Vec<Complex> {
        let n = x.len();
        let sum = |k: usize| {
            let terms = x.iter().enumerate().map(|(i, &x)| x * Complex::turned(i * k % n, n));
            terms.fold(Complex::default(), |sum, term| sum + term)
        };
        (0..n).map(sum).collect()
    }

    #[test]
    fn every_length_equals_the_sum_and_goes_back() {
        for size in (1..=48).chain([64, 74, 97, 100, 400, 509]) {
            let wave = |n: usize| Complex { re: (n * n % 17) as f64 - 8.0, im: (n % 5) as f64 };
            let x: Vec<Complex> = (0..size).map(wave).collect();
            let fourier = Fourier::new(size);
            let found = fourier.forward(&x);
            let far = |a: &[Complex], b: &[Complex]| {
                a.iter()
                    .zip(b)
                    .fold(0.0_f64, |m, (a, b)| m.max((a.re - b.re).abs()).max((a.im - b.im).abs()))
            };
            assert!(far(&found, &direct(&x)) < 1e-9, "size {size}");
            assert!(far(&fourier.inverse(&found), &x) < 1e-11, "size {size}");
        }
    }
}
