//! The Fourier transform of real signals of f32 whose length is a power of two.
//!
//! Two neighbours make one complex number z, so that half as many are transformed (Stockham's order,
//! which sorts as it goes, four terms at a time). From their terms Z those of the signal are
//! X[k] = ½·(Z[k] + Z̄[M−k]) − i/2·wᵏ·(Z[k] − Z̄[M−k]), with w = e^(−2πi/N) and M = N/2.

use std::f64::consts::TAU;

use super::vectorized;

/// A length made ready.
pub(crate) struct RealFourier {
    /// M.
    half: usize,
    /// Of each pass of four, wᵖ, w²ᵖ and w³ᵖ for each p: six numbers.
    roots: Vec<Vec<f32>>,
    /// Real and imaginary parts of wᵏ for k up to M.
    turns: [Vec<f32>; 2],
}

/// The shortest signal that is made ready.
pub(crate) const SIZE_MIN: usize = 8;

impl RealFourier {
    /// `size` is a power of two, and at least [`SIZE_MIN`].
    pub(crate) fn new(size: usize) -> Self {
        let half = size / 2;
        let turn = |numerator: usize, denominator: usize| {
            let angle = -TAU * (numerator % denominator) as f64 / denominator as f64;
            [angle.cos() as f32, angle.sin() as f32]
        };
        let (mut roots, mut length) = (Vec::new(), half);
        while length >= 4 {
            let of = |p: usize| [1, 2, 3].map(|power| turn(p * power, length));
            roots.push((0..length / 4).flat_map(of).flatten().collect());
            length /= 4;
        }
        let turns = [0, 1].map(|part| (0..=half).map(|k| turn(k, size)[part]).collect());
        Self { half, roots, turns }
    }

    /// Numbers that a transform needs room for.
    pub(crate) fn room(&self) -> usize {
        4 * self.half
    }

    /// The terms from 0 to N/2 of `signal` times `window`, real and imaginary parts.
    pub(crate) fn forward(
        &self,
        signal: &[f32],
        window: &[f32],
        room: &mut [f32],
        [out_re, out_im]: [&mut [f32]; 2],
    ) {
        let (first, second) = room.split_at_mut(2 * self.half);
        let (mut re, mut im) = first.split_at_mut(self.half);
        let (mut next_re, mut next_im) = second.split_at_mut(self.half);
        pairs(signal, window, re, im);
        let (mut stride, mut length) = (1, self.half);
        for roots in &self.roots {
            if stride == 1 {
                first_fours(re, im, next_re, next_im, roots);
            } else {
                fours(re, im, next_re, next_im, roots, stride);
            }
            std::mem::swap(&mut re, &mut next_re);
            std::mem::swap(&mut im, &mut next_im);
            stride *= 4;
            length /= 4;
        }
        if length == 2 {
            twos(re, next_re);
            twos(im, next_im);
            (re, im) = (next_re, next_im);
        }
        untangle(re, im, &self.turns[0], &self.turns[1], out_re, out_im);
    }
}

vectorized! {
    /// Every other number of a weighted signal is a real part.
    fn pairs<FMA>(signal: &[f32], window: &[f32], re: &mut [f32], im: &mut [f32]) {
        let (signal, window) = (signal.chunks_exact(2), window.chunks_exact(2));
        for (((x, w), re), im) in signal.zip(window).zip(re).zip(im) {
            *re = x[0] * w[0];
            *im = x[1] * w[1];
        }
    }

    /// The pass with which terms that stand a quarter apart become neighbours.
    fn first_fours<FMA>(
        re: &[f32],
        im: &[f32],
        out_re: &mut [f32],
        out_im: &mut [f32],
        roots: &[f32],
    ) {
        let quarter = re.len() / 4;
        let (ar, br, cr, dr) = four(re, 0, quarter, quarter);
        let (ai, bi, ci, di) = four(im, 0, quarter, quarter);
        let (roots, _) = roots.as_chunks::<6>();
        let (out_re, _) = out_re.as_chunks_mut::<4>();
        let (out_im, _) = out_im.as_chunks_mut::<4>();
        for p in 0..quarter {
            let terms = [[ar[p], ai[p]], [br[p], bi[p]], [cr[p], ci[p]], [dr[p], di[p]]];
            let found = butterfly(terms, &roots[p]);
            out_re[p] = [found[0][0], found[1][0], found[2][0], found[3][0]];
            out_im[p] = [found[0][1], found[1][1], found[2][1], found[3][1]];
        }
    }

    /// A later pass: runs of `stride` terms are alike.
    fn fours<FMA>(
        re: &[f32],
        im: &[f32],
        out_re: &mut [f32],
        out_im: &mut [f32],
        roots: &[f32],
        stride: usize,
    ) {
        let quarter = re.len() / 4;
        let (roots, _) = roots.as_chunks::<6>();
        let outputs = out_re.chunks_exact_mut(4 * stride).zip(out_im.chunks_exact_mut(4 * stride));
        for (p, ((out_re, out_im), roots)) in outputs.zip(roots).enumerate() {
            let (ar, br, cr, dr) = four(re, p * stride, quarter, stride);
            let (ai, bi, ci, di) = four(im, p * stride, quarter, stride);
            let (r0, r) = out_re.split_at_mut(stride);
            let (r1, r) = r.split_at_mut(stride);
            let (r2, r3) = r.split_at_mut(stride);
            let (i0, i) = out_im.split_at_mut(stride);
            let (i1, i) = i.split_at_mut(stride);
            let (i2, i3) = i.split_at_mut(stride);
            for q in (0..stride).step_by(LANES) {
                let a = [at(ar, q), at(ai, q)];
                let b = [at(br, q), at(bi, q)];
                let c = [at(cr, q), at(ci, q)];
                let d = [at(dr, q), at(di, q)];
                let [first, second, third, fourth] = butterflies([a, b, c, d], roots);
                put(first, r0, i0, q);
                put(second, r1, i1, q);
                put(third, r2, i2, q);
                put(fourth, r3, i3, q);
            }
        }
    }

    /// What is left when pairs are: their sums and differences.
    fn twos<FMA>(x: &[f32], out: &mut [f32]) {
        let (a, b) = x.split_at(x.len() / 2);
        let (sums, differences) = out.split_at_mut(a.len());
        for (((sum, difference), a), b) in sums.iter_mut().zip(differences).zip(a).zip(b) {
            *sum = a + b;
            *difference = a - b;
        }
    }

    /// Terms of the signal from those of its pairs.
    fn untangle<FMA>(
        re: &[f32],
        im: &[f32],
        turn_re: &[f32],
        turn_im: &[f32],
        out_re: &mut [f32],
        out_im: &mut [f32],
    ) {
        let half = re.len();
        (out_re[0], out_im[0]) = (re[0] + im[0], 0.0);
        (out_re[half], out_im[half]) = (re[0] - im[0], 0.0);
        let (turn_re, turn_im) = (&turn_re[1..half], &turn_im[1..half]);
        let (out_re, out_im) = (&mut out_re[1..half], &mut out_im[1..half]);
        let (re, im) = (&re[1..half], &im[1..half]);
        for k in 0..half - 1 {
            let mirrored = half - 2 - k;
            let (even_re, even_im) = (re[k] + re[mirrored], im[k] - im[mirrored]);
            let (odd_re, odd_im) = (im[k] + im[mirrored], re[mirrored] - re[k]);
            let (c, s) = (turn_re[k], turn_im[k]);
            out_re[k] = 0.5 * (even_re + (c * odd_re - s * odd_im));
            out_im[k] = 0.5 * (even_im + (c * odd_im + s * odd_re));
        }
    }
}

/// Runs of `size` numbers from `first` on, a quarter apart.
#[inline(always)]
fn four(x: &[f32], first: usize, quarter: usize, size: usize) -> (&[f32], &[f32], &[f32], &[f32]) {
    let (b, c, d) = (first + quarter, first + 2 * quarter, first + 3 * quarter);
    (&x[first..first + size], &x[b..b + size], &x[c..c + size], &x[d..d + size])
}

/// Terms that are alike and computed side by side; strides are multiples of it.
const LANES: usize = 4;
type Lanes = [f32; LANES];

#[inline(always)]
fn at(x: &[f32], first: usize) -> Lanes {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&x[first..first + LANES]);
    lanes
}

#[inline(always)]
fn put(x: [Lanes; 2], re: &mut [f32], im: &mut [f32], first: usize) {
    re[first..first + LANES].copy_from_slice(&x[0]);
    im[first..first + LANES].copy_from_slice(&x[1]);
}

/// [`butterfly`] of several at once.
#[inline(always)]
fn butterflies([a, b, c, d]: [[Lanes; 2]; 4], roots: &[f32; 6]) -> [[Lanes; 2]; 4] {
    let (even, odd) = ([plus(a[0], c[0]), plus(a[1], c[1])], [plus(b[0], d[0]), plus(b[1], d[1])]);
    let apart = [minus(a[0], c[0]), minus(a[1], c[1])];
    let turned = [minus(b[1], d[1]), minus(d[0], b[0])];
    let second = [plus(apart[0], turned[0]), plus(apart[1], turned[1])];
    let third = [minus(even[0], odd[0]), minus(even[1], odd[1])];
    let fourth = [minus(apart[0], turned[0]), minus(apart[1], turned[1])];
    [
        [plus(even[0], odd[0]), plus(even[1], odd[1])],
        all_times(second, roots[0], roots[1]),
        all_times(third, roots[2], roots[3]),
        all_times(fourth, roots[4], roots[5]),
    ]
}

#[inline(always)]
fn plus(a: Lanes, b: Lanes) -> Lanes {
    let mut sum = a;
    for (sum, b) in sum.iter_mut().zip(b) {
        *sum += b;
    }
    sum
}

#[inline(always)]
fn minus(a: Lanes, b: Lanes) -> Lanes {
    let mut difference = a;
    for (difference, b) in difference.iter_mut().zip(b) {
        *difference -= b;
    }
    difference
}

#[inline(always)]
fn scaled(x: Lanes, factor: f32) -> Lanes {
    let mut scaled = x;
    for x in &mut scaled {
        *x *= factor;
    }
    scaled
}

#[inline(always)]
fn all_times(x: [Lanes; 2], re: f32, im: f32) -> [Lanes; 2] {
    [minus(scaled(x[0], re), scaled(x[1], im)), plus(scaled(x[0], im), scaled(x[1], re))]
}

/// The transform of four terms, of which the later three are turned.
#[inline(always)]
fn butterfly([a, b, c, d]: [[f32; 2]; 4], roots: &[f32; 6]) -> [[f32; 2]; 4] {
    let (even, odd) = ([a[0] + c[0], a[1] + c[1]], [b[0] + d[0], b[1] + d[1]]);
    let apart = [a[0] - c[0], a[1] - c[1]];
    // −i·(b − d)
    let turned = [b[1] - d[1], d[0] - b[0]];
    [
        [even[0] + odd[0], even[1] + odd[1]],
        times([apart[0] + turned[0], apart[1] + turned[1]], roots[0], roots[1]),
        times([even[0] - odd[0], even[1] - odd[1]], roots[2], roots[3]),
        times([apart[0] - turned[0], apart[1] - turned[1]], roots[4], roots[5]),
    ]
}

#[inline(always)]
fn times(x: [f32; 2], re: f32, im: f32) -> [f32; 2] {
    [x[0] * re - x[1] * im, x[0] * im + x[1] * re]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_gives_the_sums_in_f64() {
        for size in [8, 16, 32, 64, 128, 256, 512, 2048] {
            let signal: Vec<f32> = (0..size).map(|n| ((n * n % 37) as f32).sin()).collect();
            let window: Vec<f32> = (0..size).map(|n| 0.1 + (n % 5) as f32).collect();
            let weighted: Vec<f64> =
                signal.iter().zip(&window).map(|(x, w)| f64::from(x * w)).collect();
            let fourier = RealFourier::new(size);
            let mut room = vec![f32::NAN; fourier.room()];
            let (mut re, mut im) = (vec![0.0; size / 2 + 1], vec![0.0; size / 2 + 1]);
            fourier.forward(&signal, &window, &mut room, [&mut re, &mut im]);
            let power = weighted.iter().map(|x| x * x).sum::<f64>().sqrt();
            for k in 0..=size / 2 {
                let mut expected = [0.0_f64; 2];
                for (n, x) in weighted.iter().enumerate() {
                    let angle = -TAU * (n * k % size) as f64 / size as f64;
                    expected[0] += x * angle.cos();
                    expected[1] += x * angle.sin();
                }
                let far = [(re[k], expected[0]), (im[k], expected[1])]
                    .map(|(found, expected)| (f64::from(found) - expected).abs());
                // A few roundings of f32 for each of log₂ N passes.
                let bound = 1e-6 * power;
                assert!(far[0] < bound && far[1] < bound, "{size} term {k}: {far:?} of {power}");
            }
        }
    }
}
