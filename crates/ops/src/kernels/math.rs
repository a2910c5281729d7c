//! exp, erf, tanh and their kin in f32, written so that loops over them become vector code.
#![allow(clippy::excessive_precision, clippy::unreadable_literal)] // coefficients as fitted

/// a·b + c, in one rounding where the CPU can.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn polynomial<const FMA: bool, const N: usize>(x: f32, highest_first: [f32; N]) -> f32 {
    let mut sum = highest_first[0];
    for coefficient in &highest_first[1..] {
        sum = fma::<FMA>(sum, x, *coefficient);
    }
    sum
}

/// eˣ within 2 ulp; 0 below −87.3, so that a masked score weighs exactly nothing, and ∞ above 88.7.
///
/// x = n·ln 2 + r; eʳ by the polynomial of Cephes' `expf`; 2ⁿ by its exponent bits.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to the nearest integer
    let clamped = x.clamp(-88.0, 88.8);
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -0.693_359_4, clamped);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let p = polynomial::<FMA, 6>(
        r,
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5],
    );
    let e = fma::<FMA>(p * r, r, r) + 1.0;
    // 2ⁿ in two halves, since 2¹²⁸ itself is no f32. n is taken from the bits of `shifted`: `as`
    // saturates, which keeps the loop around from becoming vector code.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let rest = n.wrapping_sub(half);
    let result = e * power_of_two(half) * power_of_two(rest);
    if x < -87.336_54 {
        0.0
    } else if x > 88.722_84 {
        f32::INFINITY
    } else {
        // NaN fails both comparisons and clamps to NaN, so it passes through here.
        result
    }
}

/// As [`exp`], for x ≤ 0, in two thirds of its instructions: what softmax takes.
///
/// Without infinity to reach, 2ⁿ is one addition to the exponent's bits, and n never leaves them.
#[inline(always)]
pub(crate) fn exp_of_negative<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it leaves the nearest integer in the low bits
    const LEAST: f32 = -87.336_54;
    let bounded = if x < LEAST { LEAST } else { x };
    let shifted = fma::<FMA>(bounded, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -0.693_359_4, bounded);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let p = polynomial::<FMA, 6>(
        r,
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5],
    );
    let e = fma::<FMA>(p * r, r, r) + 1.0;
    let result = f32::from_bits(e.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x >= LEAST {
        result
    } else if x < LEAST {
        0.0
    } else {
        f32::NAN
    }
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// erf x within 5e-7: x·P(2x²/3.6² − 1) up to 3.6, and ±1 beyond, where 1 − erf x < 4e-7.
///
/// P is a least-maximum fit of degree 13 made for this file (8.6e-8). One polynomial costs half of
/// what a split at 1 with an exponential above does, and GELU is 8 % of a small encoder's time.
#[inline(always)]
pub(crate) fn erf<const FMA: bool>(x: f32) -> f32 {
    let a = x.clamp(-ERF_END, ERF_END);
    let u = fma::<FMA>(a * a, 2.0 / (ERF_END * ERF_END), -1.0);
    let inside = a * polynomial::<FMA, 14>(u, ERF);
    if x.abs() > ERF_END { 1.0_f32.copysign(x) } else { inside }
}

pub(super) const ERF_END: f32 = 3.6;
pub(super) const ERF: [f32; 14] = [
    -9.657525275e-04,
    2.631471835e-03,
    -2.843602624e-03,
    4.572022313e-03,
    -1.162672283e-02,
    2.124677760e-02,
    -3.255028178e-02,
    4.829283269e-02,
    -6.802956096e-02,
    8.981190125e-02,
    -1.137939681e-01,
    1.438109233e-01,
    -1.954905094e-01,
    3.927121242e-01,
];

/// ½·x·(1 + erf(x/√2)).
#[inline(always)]
pub(crate) fn gelu<const FMA: bool>(x: f32) -> f32 {
    let half = 0.5 * x;
    fma::<FMA>(half, erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2), half)
}

/// ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
#[inline(always)]
pub(crate) fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    let inner = 0.797_884_6 * fma::<FMA>(0.044_715 * x * x, x, x);
    0.5 * x * (1.0 + tanh::<FMA>(inner))
}

#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// tanh x; near 0, where 1 − 2/(e²ˣ + 1) would cancel, by its odd series as in Cephes' `tanhf`.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let square = x * x;
    let series = polynomial::<FMA, 5>(
        square,
        [-5.704_988_7e-3, 2.063_908_9e-2, -5.373_971_4e-2, 0.133_314_42, -0.333_332_84],
    );
    let small = fma::<FMA>(series * square, x, x);
    let large = 1.0 - 2.0 / (exp::<FMA>(2.0 * x) + 1.0);
    if x.abs() < 0.625 { small } else { large }
}

/// eˣ − 1 for x ≤ 0; near 0, where the difference would cancel, by its series.
#[inline(always)]
pub(crate) fn exp_m1<const FMA: bool>(x: f32) -> f32 {
    let series = polynomial::<FMA, 6>(
        x,
        [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5],
    );
    let small = fma::<FMA>(series * x, x, x);
    if x.abs() < 0.5 { small } else { exp::<FMA>(x) - 1.0 }
}

/// ln x within 2 ulp: −∞ of 0, NaN below.
///
/// x = 2ⁿ·m with m from √½ to √2; ln m by the polynomial of Cephes' `logf`.
#[inline(always)]
pub(crate) fn ln<const FMA: bool>(x: f32) -> f32 {
    // Numbers below the least normal one have no exponent of their own.
    let is_subnormal = x < f32::MIN_POSITIVE;
    let scaled = if is_subnormal { x * 8_388_608.0 } else { x };
    let bits = scaled.to_bits() as i32;
    // Counted from √½, so that m is near 1.
    let shifted = bits.wrapping_sub(0x3f35_04f3);
    let n = (shifted >> 23) as f32 - if is_subnormal { 23.0 } else { 0.0 };
    let m = f32::from_bits(((shifted & 0x007f_ffff) + 0x3f35_04f3) as u32);
    let r = m - 1.0;
    let series = polynomial::<FMA, 9>(
        r,
        [
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333_1e-1,
        ],
    );
    let square = r * r;
    let tail = fma::<FMA>(n, -2.121_944_4e-4, series * r * square);
    let result = fma::<FMA>(n, 0.693_359_4, r + fma::<FMA>(-0.5, square, tail));
    if x == 0.0 {
        f32::NEG_INFINITY
    } else if x < 0.0 {
        f32::NAN
    } else if x < f32::INFINITY {
        result
    } else {
        // ∞, and NaN, which fails every comparison.
        x
    }
}

/// ln(1 + eˣ) = max(x, 0) + ln(1 + e⁻ˡˣˡ).
#[inline(always)]
pub(crate) fn softplus<const FMA: bool>(x: f32) -> f32 {
    let e = exp::<FMA>(-x.abs());
    // ln(1 + e) without losing a small e: 1 + e is rounded, and the ratio undoes it.
    let sum = 1.0 + e;
    let rounded = sum - 1.0;
    let ratio = e / if rounded == 0.0 { 1.0 } else { rounded };
    let logarithm = if rounded == 0.0 { e } else { ln::<FMA>(sum) * ratio };
    // Of NaN, the comparison is false and the logarithm NaN.
    if x > 0.0 { x + logarithm } else { logarithm }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64, relative: bool, range: f64) -> f64 {
        (-200_000..=200_000)
            .map(|i| {
                let x = (f64::from(i) / 200_000.0 * range) as f32;
                let expected = exact(f64::from(x));
                let scale = if relative { expected.abs().max(1e-37) } else { 1.0 };
                (f64::from(f(x)) - expected).abs() / scale
            })
            .fold(0.0, f64::max)
    }

    /// erf by its Taylor series in f64, exact enough up to 5.
    fn erf_exact(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn exp_is_within_two_ulp_with_and_without_fma() {
        assert!(worst(exp::<true>, f64::exp, true, 87.0) < 2.4e-7);
        assert!(worst(exp::<false>, f64::exp, true, 87.0) < 2.4e-7);
    }

    #[test]
    fn exp_ends_at_zero_and_infinity_and_keeps_nan() {
        assert_eq!(exp::<true>(-1e9), 0.0);
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(f32::INFINITY), f32::INFINITY);
        assert!(exp::<true>(f32::NAN).is_nan());
        assert_eq!(exp::<true>(0.0), 1.0);
    }

    #[test]
    fn exp_of_negative_is_exp() {
        for i in 0..=400_000 {
            let x = -(i as f32) / 4000.0;
            assert_eq!(exp_of_negative::<true>(x), exp::<true>(x), "{x}");
            assert_eq!(exp_of_negative::<false>(x), exp::<false>(x), "{x}");
        }
        assert_eq!(exp_of_negative::<true>(f32::NEG_INFINITY), 0.0);
        assert!(exp_of_negative::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_within_5e_7() {
        assert!(worst(erf::<true>, erf_exact, false, 4.5) < 5e-7);
        assert!(worst(erf::<false>, erf_exact, false, 4.5) < 5e-7);
        assert!(erf::<true>(f32::NAN).is_nan());
        assert_eq!(erf::<true>(f32::INFINITY), 1.0);
    }

    #[test]
    fn ln_is_within_two_ulp() {
        for f in [ln::<true>, ln::<false>] {
            for exponent in -149..128 {
                for step in 0..200 {
                    let x = (2.0_f64.powi(exponent) * (1.0 + f64::from(step) / 200.0)) as f32;
                    let exact = f64::from(x).ln();
                    let error = (f64::from(f(x)) - exact).abs();
                    assert!(error <= 1.3e-7 * exact.abs().max(0.25), "ln {x:e}: {error:e}");
                }
            }
        }
        assert_eq!(ln::<true>(0.0), f32::NEG_INFINITY);
        assert_eq!(ln::<true>(f32::INFINITY), f32::INFINITY);
        assert!(ln::<true>(-1.0).is_nan() && ln::<true>(f32::NAN).is_nan());
        assert_eq!(ln::<true>(1.0), 0.0);
    }

    #[test]
    fn softplus_and_exp_m1_keep_small_results() {
        let softplus_exact = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        assert!(worst(softplus::<true>, softplus_exact, true, 80.0) < 6e-7);
        assert!(worst(softplus::<false>, softplus_exact, true, 80.0) < 6e-7);
        let below = |x: f32| exp_m1::<true>(-x.abs());
        assert!(worst(below, |x| (-x.abs()).exp_m1(), true, 20.0) < 6e-7);
        assert!(softplus::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_within_3e_7() {
        assert!(worst(tanh::<true>, f64::tanh, false, 12.0) < 3e-7);
        assert_eq!(tanh::<true>(f32::INFINITY), 1.0);
        assert_eq!(tanh::<true>(f32::NEG_INFINITY), -1.0);
    }
}
