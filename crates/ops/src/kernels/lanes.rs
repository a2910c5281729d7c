//! Vectors of floats as wide as the CPU has them, for loops that the compiler would not widen by
//! itself: sums that stay in registers over a whole product.
#![allow(clippy::excessive_precision, clippy::unreadable_literal)] // coefficients as fitted

use attar_tensor::Element;

use super::{Isa, isa};

/// A vector of floats. One of a CPU's own type is only made within [`Real::dispatch`], which found
/// that CPU's instructions present.
pub(crate) trait Lanes: Copy {
    type Item: Real;

    /// Floats in the vector.
    const COUNT: usize;

    /// Rows that a product's tile has room for in registers, beside four to six vectors a row.
    const ROWS: usize;

    fn splat(x: Self::Item) -> Self;

    /// The first floats of a slice.
    fn load(from: &[Self::Item]) -> Self;

    /// Writes the first floats of a slice.
    fn store(self, to: &mut [Self::Item]);

    fn add(self, other: Self) -> Self;

    fn sub(self, other: Self) -> Self;

    fn mul(self, other: Self) -> Self;

    /// self·b + c.
    fn fma(self, b: Self, c: Self) -> Self;

    /// Within −bound..=bound; NaN stays.
    fn bounded(self, bound: Self) -> Self;

    /// max(x, 0); NaN stays.
    fn relu(self) -> Self;

    /// 1/(1 + e⁻ˣ).
    fn sigmoid(self) -> Self;

    fn tanh(self) -> Self;
}

/// Work over vectors, compiled for each width.
pub(crate) trait Work<T> {
    fn run<L: Lanes<Item = T>>(self);
}

/// A float type that kernels compute in.
pub(crate) trait Real: Element + Copy + Default + PartialOrd {
    /// The widest vector of any CPU; packed weights are padded to it.
    fn lanes() -> usize;

    /// Runs the work with the widest vectors of this CPU.
    fn dispatch(work: impl Work<Self>);

    fn from_f64(x: f64) -> Self;

    fn to_f64(self) -> f64;
}

impl Real for f32 {
    fn lanes() -> usize {
        match isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => 16,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => 8,
            Isa::Portable => <Portable<f32, 4> as Lanes>::COUNT,
        }
    }

    fn dispatch(work: impl Work<Self>) {
        match isa() {
            // SAFETY: `isa` found every feature that the function is compiled for.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::avx512(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::avx2(work) },
            Isa::Portable => work.run::<Portable<f32, 4>>(),
        }
    }

    fn from_f64(x: f64) -> Self {
        x as Self
    }

    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Real for f64 {
    fn lanes() -> usize {
        <Portable<Self, 2> as Lanes>::COUNT
    }

    fn dispatch(work: impl Work<Self>) {
        work.run::<Portable<Self, 2>>();
    }

    fn from_f64(x: f64) -> Self {
        x
    }

    fn to_f64(self) -> f64 {
        self
    }
}

/// The bits that exp needs beside arithmetic: f32 vectors alone have them.
trait FloatBits: Lanes<Item = f32> {
    fn div(self, other: Self) -> Self;

    /// 2ⁿ, where `self` is n + 1.5·2²³ and −126 ≤ n ≤ 127.
    fn power_of_two(self) -> Self;
}

/// (2ⁿ, eʳ − 1) for x = n·ln 2 + r, as in [`super::math::exp`]; |x| below 87.
#[inline(always)]
fn exp_parts<L: FloatBits>(x: L) -> (L, L) {
    let round = L::splat(12_582_912.0);
    let shifted = x.fma(L::splat(std::f32::consts::LOG2_E), round);
    let n = shifted.sub(round);
    let r = n.fma(L::splat(-0.693_359_4), x);
    let r = n.fma(L::splat(2.121_944_4e-4), r);
    let mut p = L::splat(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p.fma(r, L::splat(coefficient));
    }
    (shifted.power_of_two(), p.mul(r).fma(r, r))
}

/// 1/(1 + e⁻ˣ) within 1.2e-7.
#[inline(always)]
fn sigmoid<L: FloatBits>(x: L) -> L {
    let one = L::splat(1.0);
    let negative = L::splat(0.0).sub(x.bounded(L::splat(86.0)));
    let (power, minus_one) = exp_parts(negative);
    one.div(power.fma(minus_one, power.add(one)))
}

/// (e²ˣ − 1)/(e²ˣ + 1) within 1.2e-7 and 4e-7 of its value: near 0, where 2ⁿ is 1, eʳ − 1 is the
/// numerator itself.
#[inline(always)]
fn tanh<L: FloatBits>(x: L) -> L {
    let twice = x.add(x).bounded(L::splat(20.0));
    let (power, minus_one) = exp_parts(twice);
    let numerator = power.fma(minus_one, power.sub(L::splat(1.0)));
    numerator.div(numerator.add(L::splat(2.0)))
}

/// Vectors as arrays, for CPUs without a type of their own here, and for f64.
#[derive(Clone, Copy)]
pub(crate) struct Portable<T, const N: usize>([T; N]);

macro_rules! portable {
    ($ty:ty, $count:literal, $sigmoid:path, $tanh:path) => {
        impl Lanes for Portable<$ty, $count> {
            type Item = $ty;

            const COUNT: usize = $count;
            const ROWS: usize = 2;

            #[inline(always)]
            fn splat(x: $ty) -> Self {
                Self([x; $count])
            }

            #[inline(always)]
            fn load(from: &[$ty]) -> Self {
                Self(*from.first_chunk().expect("a vector's floats"))
            }

            #[inline(always)]
            fn store(self, to: &mut [$ty]) {
                to[..$count].copy_from_slice(&self.0);
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
            }

            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
            }

            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                Self(std::array::from_fn(|i| self.0[i] * other.0[i]))
            }

            #[inline(always)]
            fn fma(self, b: Self, c: Self) -> Self {
                if cfg!(target_arch = "aarch64") {
                    return Self(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])));
                }
                self.mul(b).add(c)
            }

            #[inline(always)]
            fn bounded(self, bound: Self) -> Self {
                Self(std::array::from_fn(|i| self.0[i].clamp(-bound.0[i], bound.0[i])))
            }

            #[inline(always)]
            fn relu(self) -> Self {
                Self(self.0.map(|x| if x < 0.0 { 0.0 } else { x }))
            }

            #[inline(always)]
            fn sigmoid(self) -> Self {
                $sigmoid(self)
            }

            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
        }
    };
}

fn sigmoid_f64(x: Portable<f64, 2>) -> Portable<f64, 2> {
    Portable(x.0.map(|x| 1.0 / (1.0 + (-x).exp())))
}

fn tanh_f64(x: Portable<f64, 2>) -> Portable<f64, 2> {
    Portable(x.0.map(f64::tanh))
}

portable!(f32, 4, sigmoid, tanh);
portable!(f64, 2, sigmoid_f64, tanh_f64);

impl FloatBits for Portable<f32, 4> {
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] / other.0[i]))
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self(self.0.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(127 << 23))))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports)] // every instruction below
    use std::arch::x86_64::*;

    use super::{FloatBits, Lanes, Work, sigmoid, tanh};

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    pub(super) fn avx512(work: impl Work<f32>) {
        work.run::<__m512>();
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(work: impl Work<f32>) {
        work.run::<__m256>();
    }

    macro_rules! lanes {
        ($ty:ty, $count:literal, $rows:literal, $load:ident, $store:ident, $set:ident, $zero:ident,
         $add:ident, $sub:ident, $mul:ident, $div:ident, $fma:ident, $max:ident, $min:ident,
         $bits:ident, $floats:ident, $shift:ident, $add_bits:ident, $set_bits:ident) => {
            impl Lanes for $ty {
                type Item = f32;

                const COUNT: usize = $count;
                const ROWS: usize = $rows;

                #[inline(always)]
                fn splat(x: f32) -> Self {
                    // SAFETY: as for all below: only called where `isa` found the instructions.
                    unsafe { $set(x) }
                }

                #[inline(always)]
                fn load(from: &[f32]) -> Self {
                    let from = &from[..$count];
                    // SAFETY: the slice holds the floats of a vector.
                    unsafe { $load(from.as_ptr()) }
                }

                #[inline(always)]
                fn store(self, to: &mut [f32]) {
                    let to = &mut to[..$count];
                    // SAFETY: the slice has room for the floats of a vector.
                    unsafe { $store(to.as_mut_ptr(), self) }
                }

                #[inline(always)]
                fn add(self, other: Self) -> Self {
                    // SAFETY: see `splat`.
                    unsafe { $add(self, other) }
                }

                #[inline(always)]
                fn sub(self, other: Self) -> Self {
                    // SAFETY: see `splat`.
                    unsafe { $sub(self, other) }
                }

                #[inline(always)]
                fn mul(self, other: Self) -> Self {
                    // SAFETY: see `splat`.
                    unsafe { $mul(self, other) }
                }

                #[inline(always)]
                fn fma(self, b: Self, c: Self) -> Self {
                    // SAFETY: see `splat`.
                    unsafe { $fma(self, b, c) }
                }

                #[inline(always)]
                fn bounded(self, bound: Self) -> Self {
                    // Of a NaN and another, these two give their second operand.
                    // SAFETY: see `splat`.
                    unsafe { $min(bound, $max($sub($zero(), bound), self)) }
                }

                #[inline(always)]
                fn relu(self) -> Self {
                    // SAFETY: see `splat`.
                    unsafe { $max($zero(), self) }
                }

                #[inline(always)]
                fn sigmoid(self) -> Self {
                    sigmoid(self)
                }

                #[inline(always)]
                fn tanh(self) -> Self {
                    tanh(self)
                }
            }

            impl FloatBits for $ty {
                #[inline(always)]
                fn div(self, other: Self) -> Self {
                    // SAFETY: see `splat`.
                    unsafe { $div(self, other) }
                }

                #[inline(always)]
                fn power_of_two(self) -> Self {
                    // SAFETY: see `splat`.
                    unsafe { $floats($add_bits($shift::<23>($bits(self)), $set_bits(127 << 23))) }
                }
            }
        };
    }

    lanes!(
        __m512,
        16,
        4,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_setzero_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_div_ps,
        _mm512_fmadd_ps,
        _mm512_max_ps,
        _mm512_min_ps,
        _mm512_castps_si512,
        _mm512_castsi512_ps,
        _mm512_slli_epi32,
        _mm512_add_epi32,
        _mm512_set1_epi32
    );
    lanes!(
        __m256,
        8,
        2,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_setzero_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_div_ps,
        _mm256_fmadd_ps,
        _mm256_max_ps,
        _mm256_min_ps,
        _mm256_castps_si256,
        _mm256_castsi256_ps,
        _mm256_slli_epi32,
        _mm256_add_epi32,
        _mm256_set1_epi32
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Apply<'a>(&'a mut [f32], bool);

    impl Work<f32> for Apply<'_> {
        #[inline(always)]
        fn run<L: Lanes<Item = f32>>(self) {
            for chunk in self.0.chunks_exact_mut(L::COUNT) {
                let x = L::load(chunk);
                if self.1 { x.tanh() } else { x.sigmoid() }.store(chunk);
            }
        }
    }

    fn applied(x: &[f32], tanh: bool, portable: bool) -> Vec<f32> {
        let mut values = x.to_vec();
        let work = Apply(&mut values, tanh);
        if portable {
            work.run::<Portable<f32, 4>>();
        } else {
            f32::dispatch(work);
        }
        values
    }

    #[test]
    fn sigmoid_and_tanh_are_within_2e_7_on_every_vector() {
        let x: Vec<f32> = (-160_000..160_000).map(|i| i as f32 / 4_000.0).collect();
        for portable in [false, true] {
            let (sigmoids, tanhs) = (applied(&x, false, portable), applied(&x, true, portable));
            for ((&x, sigmoid), tanh) in x.iter().zip(sigmoids).zip(tanhs) {
                let x = f64::from(x);
                assert!((f64::from(sigmoid) - 1.0 / (1.0 + (-x).exp())).abs() < 2e-7, "{x}");
                assert!((f64::from(tanh) - x.tanh()).abs() < 2e-7, "{x}");
                let relative = (f64::from(tanh) / x.tanh() - 1.0).abs();
                assert!(x == 0.0 || relative < 5e-7, "{x}: {relative:e}");
            }
        }
    }

    #[test]
    fn the_ends_are_reached_and_nan_stays() {
        let x = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e30];
        let x: Vec<f32> = x.into_iter().cycle().take(16).collect();
        let (sigmoids, tanhs) = (applied(&x, false, false), applied(&x, true, false));
        assert_eq!(sigmoids[0], 1.0);
        assert!(sigmoids[1] < 1e-37);
        assert_eq!(tanhs[..2], [1.0, -1.0]);
        assert!(sigmoids[2].is_nan() && tanhs[2].is_nan());
    }
}
