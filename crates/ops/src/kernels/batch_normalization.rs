//! Passes over rows of channels, what batch normalization and the activation behind it are made
//! of, forward and backward.
//!
//! z = x·factor + shift by channel, y = f(z), and of what flows back, g = dy·f′(z).

use super::channels_last::{Activation, load, store};
#[cfg(target_arch = "x86_64")]
use super::registers::{Avx2, Avx512};
use super::registers::{Lanes, Portable};
use super::{Isa, isa};

/// Factors and terms of each channel.
#[derive(Clone, Copy)]
pub(crate) struct Line<'a> {
    pub(crate) factor: &'a [f32],
    pub(crate) shift: &'a [f32],
    pub(crate) activation: Activation,
}

/// One pass: what happens to up to sixteen channels of `R` rows.
trait Pass {
    /// # Safety
    /// The CPU has the instructions of `L`; `at` is the place of channel `channel` in the first of
    /// `R` rows that follow each other at `step`, and `count` ≤ 16 channels are there.
    unsafe fn work<L: Lanes, const R: usize>(
        &mut self,
        at: usize,
        step: usize,
        channel: usize,
        count: usize,
    );
}

/// Passes over `rows` rows, four at a time.
///
/// # Safety
/// As [`Pass::work`], for every row and channel.
#[inline(always)]
unsafe fn walk<L: Lanes, P: Pass>(pass: &mut P, rows: usize, channels: usize) {
    let whole = rows / 4 * 4;
    for row in (0..whole).step_by(4) {
        for channel in (0..channels).step_by(16) {
            let (at, count) = (row * channels + channel, (channels - channel).min(16));
            // SAFETY: the caller's promise.
            unsafe { pass.work::<L, 4>(at, channels, channel, count) }
        }
    }
    for row in whole..rows {
        for channel in (0..channels).step_by(16) {
            let (at, count) = (row * channels + channel, (channels - channel).min(16));
            // SAFETY: the caller's promise.
            unsafe { pass.work::<L, 1>(at, channels, channel, count) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn walk_avx512<P: Pass>(pass: &mut P, rows: usize, channels: usize) {
    // SAFETY: the caller's promise.
    unsafe { walk::<Avx512, P>(pass, rows, channels) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn walk_avx2<P: Pass>(pass: &mut P, rows: usize, channels: usize) {
    // SAFETY: the caller's promise.
    unsafe { walk::<Avx2, P>(pass, rows, channels) }
}

/// # Safety
/// Every slice of the pass holds its rows or channels.
unsafe fn run<P: Pass>(mut pass: P, rows: usize, channels: usize) {
    match isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` found the instructions; the rest is the caller's promise.
        Isa::Avx512 => unsafe { walk_avx512(&mut pass, rows, channels) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { walk_avx2(&mut pass, rows, channels) },
        // SAFETY: as above.
        Isa::Portable => unsafe { walk::<Portable, P>(&mut pass, rows, channels) },
    }
}

/// f(z).
#[inline(always)]
unsafe fn value<L: Lanes>(activation: Activation, z: L) -> L {
    // SAFETY: the caller has the instructions.
    unsafe {
        match activation {
            Activation::Clamp(low, high) => z.max(L::splat(low)).min(L::splat(high)),
            Activation::HardSwish(alpha, beta) => {
                let line = L::splat(beta).fma(z, L::splat(alpha));
                z.mul(line.max(L::splat(0.0)).min(L::splat(1.0)))
            }
            _ => z,
        }
    }
}

/// dy·f′(z).
#[inline(always)]
unsafe fn flow<L: Lanes>(activation: Activation, z: L, dy: L) -> L {
    // SAFETY: the caller has the instructions.
    unsafe {
        match activation {
            Activation::Clamp(low, high) => dy.within(z, L::splat(low), L::splat(high)),
            Activation::HardSwish(alpha, beta) => {
                let (zero, one) = (L::splat(0.0), L::splat(1.0));
                let slope = z.mul(L::splat(alpha));
                let line = slope.add(L::splat(beta));
                let slope = slope.within(line, zero, one).add(line.max(zero).min(one));
                dy.mul(slope)
            }
            _ => dy,
        }
    }
}

struct Squares<'a> {
    sums: &'a mut [f32],
    x: &'a [f32],
    mean: &'a [f32],
}

impl Pass for Squares<'_> {
    #[inline(always)]
    unsafe fn work<L: Lanes, const R: usize>(
        &mut self,
        at: usize,
        step: usize,
        channel: usize,
        count: usize,
    ) {
        // SAFETY: the caller vouches for every place.
        unsafe {
            let minus = load::<L>(self.mean.as_ptr().add(channel), count).mul(L::splat(-1.0));
            let to = self.sums.as_mut_ptr().add(channel);
            let mut sum = load::<L>(to, count);
            for row in 0..R {
                let x = load::<L>(self.x.as_ptr().add(at + row * step), count).add(minus);
                sum = sum.fma(x, x);
            }
            store(sum, to, count);
        }
    }
}

/// sums[c] += Σ (x − mean[c])² over the rows.
///
/// # Panics
/// When a slice is shorter than the channels, or `x` no whole rows.
pub(crate) fn add_squares(sums: &mut [f32], x: &[f32], mean: &[f32]) {
    let channels = mean.len();
    assert!(channels > 0 && sums.len() == channels && x.len().is_multiple_of(channels));
    let rows = x.len() / channels;
    // SAFETY: all sizes were checked.
    unsafe { run(Squares { sums, x, mean }, rows, channels) }
}

struct Sums<'a> {
    sums: &'a mut [f32],
    x: &'a [f32],
}

impl Pass for Sums<'_> {
    #[inline(always)]
    unsafe fn work<L: Lanes, const R: usize>(
        &mut self,
        at: usize,
        step: usize,
        channel: usize,
        count: usize,
    ) {
        // SAFETY: the caller vouches for every place.
        unsafe {
            let to = self.sums.as_mut_ptr().add(channel);
            let mut sum = load::<L>(to, count);
            for row in 0..R {
                sum = sum.add(load::<L>(self.x.as_ptr().add(at + row * step), count));
            }
            store(sum, to, count);
        }
    }
}

/// sums[c] += Σ x over the rows.
///
/// # Panics
/// When `x` is no whole rows.
pub(crate) fn add_rows(sums: &mut [f32], x: &[f32]) {
    let channels = sums.len();
    assert!(channels > 0 && x.len().is_multiple_of(channels));
    let rows = x.len() / channels;
    // SAFETY: all sizes were checked.
    unsafe { run(Sums { sums, x }, rows, channels) }
}

struct Lines<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    line: Line<'a>,
}

impl Pass for Lines<'_> {
    #[inline(always)]
    unsafe fn work<L: Lanes, const R: usize>(
        &mut self,
        at: usize,
        step: usize,
        channel: usize,
        count: usize,
    ) {
        // SAFETY: the caller vouches for every place.
        unsafe {
            let factor = load::<L>(self.line.factor.as_ptr().add(channel), count);
            let shift = load::<L>(self.line.shift.as_ptr().add(channel), count);
            for row in 0..R {
                let at = at + row * step;
                let z = shift.fma(load::<L>(self.x.as_ptr().add(at), count), factor);
                let y = value(self.line.activation, z);
                store(y, self.y.as_mut_ptr().add(at), count);
            }
        }
    }
}

/// y = f(x·factor + shift).
///
/// # Panics
/// When sizes differ, or `x` is no whole rows.
pub(crate) fn lines(y: &mut [f32], x: &[f32], line: Line) {
    let channels = line.factor.len();
    assert!(channels > 0 && line.shift.len() == channels && x.len().is_multiple_of(channels));
    assert_eq!(x.len(), y.len());
    let rows = x.len() / channels;
    // SAFETY: all sizes were checked.
    unsafe { run(Lines { y, x, line }, rows, channels) }
}

struct FlowSums<'a> {
    sums: &'a mut [f32],
    products: &'a mut [f32],
    dy: &'a [f32],
    x: &'a [f32],
    mean: &'a [f32],
    line: Line<'a>,
}

impl Pass for FlowSums<'_> {
    #[inline(always)]
    unsafe fn work<L: Lanes, const R: usize>(
        &mut self,
        at: usize,
        step: usize,
        channel: usize,
        count: usize,
    ) {
        // SAFETY: the caller vouches for every place.
        unsafe {
            let factor = load::<L>(self.line.factor.as_ptr().add(channel), count);
            let shift = load::<L>(self.line.shift.as_ptr().add(channel), count);
            let minus = load::<L>(self.mean.as_ptr().add(channel), count).mul(L::splat(-1.0));
            let to_sum = self.sums.as_mut_ptr().add(channel);
            let to_product = self.products.as_mut_ptr().add(channel);
            let mut sum = load::<L>(to_sum, count);
            let mut product = load::<L>(to_product, count);
            for row in 0..R {
                let at = at + row * step;
                let x = load::<L>(self.x.as_ptr().add(at), count);
                let dy = load::<L>(self.dy.as_ptr().add(at), count);
                let g = flow(self.line.activation, shift.fma(x, factor), dy);
                sum = sum.add(g);
                product = product.fma(g, x.add(minus));
            }
            store(sum, to_sum, count);
            store(product, to_product, count);
        }
    }
}

/// sums[c] += Σ g, products[c] += Σ g·(x − mean[c]).
///
/// # Panics
/// When sizes differ, or `x` is no whole rows.
pub(crate) fn add_flows(
    [sums, products]: [&mut [f32]; 2],
    dy: &[f32],
    x: &[f32],
    mean: &[f32],
    line: Line,
) {
    let channels = mean.len();
    let lengths = [sums.len(), products.len(), line.factor.len(), line.shift.len()];
    assert!(channels > 0 && lengths == [channels; 4]);
    assert!(x.len() == dy.len() && x.len().is_multiple_of(channels));
    let rows = x.len() / channels;
    // SAFETY: all sizes were checked.
    unsafe { run(FlowSums { sums, products, dy, x, mean, line }, rows, channels) }
}

/// What a channel's flow becomes: dx = a·g + b·(x − mean) + c.
#[derive(Clone, Copy)]
pub(crate) struct Mix<'a> {
    pub(crate) a: &'a [f32],
    pub(crate) b: &'a [f32],
    pub(crate) c: &'a [f32],
    pub(crate) mean: &'a [f32],
}

struct FlowBack<'a> {
    /// May be `dx` itself.
    dy: *const f32,
    dx: *mut f32,
    x: &'a [f32],
    line: Line<'a>,
    mix: Mix<'a>,
}

impl Pass for FlowBack<'_> {
    #[inline(always)]
    unsafe fn work<L: Lanes, const R: usize>(
        &mut self,
        at: usize,
        step: usize,
        channel: usize,
        count: usize,
    ) {
        // SAFETY: the caller vouches for every place.
        unsafe {
            let factor = load::<L>(self.line.factor.as_ptr().add(channel), count);
            let shift = load::<L>(self.line.shift.as_ptr().add(channel), count);
            let minus = load::<L>(self.mix.mean.as_ptr().add(channel), count).mul(L::splat(-1.0));
            let a = load::<L>(self.mix.a.as_ptr().add(channel), count);
            let b = load::<L>(self.mix.b.as_ptr().add(channel), count);
            let c = load::<L>(self.mix.c.as_ptr().add(channel), count);
            for row in 0..R {
                let at = at + row * step;
                let x = load::<L>(self.x.as_ptr().add(at), count);
                let dy = load::<L>(self.dy.add(at), count);
                let g = flow(self.line.activation, shift.fma(x, factor), dy);
                let dx = c.fma(b, x.add(minus)).fma(a, g);
                store(dx, self.dx.add(at), count);
            }
        }
    }
}

/// dx = a·g + b·(x − mean) + c; without `dy`, what flows in stands in `dx`.
///
/// # Panics
/// When sizes differ, or `x` is no whole rows.
pub(crate) fn flow_back(dx: &mut [f32], dy: Option<&[f32]>, x: &[f32], line: Line, mix: Mix) {
    let channels = mix.mean.len();
    let lengths = [mix.a, mix.b, mix.c, line.factor, line.shift].map(<[f32]>::len);
    assert!(channels > 0 && lengths == [channels; 5] && x.len().is_multiple_of(channels));
    assert!(x.len() == dx.len() && dy.is_none_or(|dy| dy.len() == x.len()));
    let rows = x.len() / channels;
    let dx = dx.as_mut_ptr();
    let dy = dy.map_or(dx.cast_const(), <[f32]>::as_ptr);
    // SAFETY: all sizes were checked; each vector of dy is read before dx is written in its place.
    unsafe { run(FlowBack { dy, dx, x, line, mix }, rows, channels) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed) * 7919 % 2003) as f32 / 1001.0) - 1.0).collect()
    }

    fn is_close(found: &[f32], expected: &[f32]) -> bool {
        found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()))
    }

    #[test]
    fn passes_are_what_their_equations_say_for_every_count_of_channels() {
        for (channels, rows) in [(1, 1), (15, 4), (16, 7), (33, 9), (48, 3)] {
            let size = channels * rows;
            let (x, dy) = (numbers(size, 1), numbers(size, 2));
            let [factor, shift, mean] = [3, 4, 5].map(|seed| numbers(channels, seed));
            let activation = Activation::Clamp(-0.25, 0.5);
            let line = Line { factor: &factor, shift: &shift, activation };
            let z = |i: usize| x[i] * factor[i % channels] + shift[i % channels];
            let g = |i: usize| if z(i) > -0.25 && z(i) < 0.5 { dy[i] } else { 0.0 };
            let mut y = vec![0.0; size];
            lines(&mut y, &x, line);
            let expected: Vec<f32> = (0..size).map(|i| z(i).clamp(-0.25, 0.5)).collect();
            assert!(is_close(&y, &expected), "{channels} channels");
            let (mut sums, mut products) = (vec![0.0; channels], vec![0.0; channels]);
            add_flows([&mut sums, &mut products], &dy, &x, &mean, line);
            let over_rows = |term: &dyn Fn(usize) -> f32| -> Vec<f32> {
                let sum = |c: usize| (0..rows).map(|row| term(row * channels + c)).sum();
                (0..channels).map(sum).collect()
            };
            assert!(is_close(&sums, &over_rows(&g)), "{channels} channels");
            let product = |i: usize| g(i) * (x[i] - mean[i % channels]);
            assert!(is_close(&products, &over_rows(&product)), "{channels} channels");
            let mix = Mix { a: &factor, b: &shift, c: &mean, mean: &mean };
            let mut dx = dy.clone();
            flow_back(&mut dx, None, &x, line, mix);
            let value = |i: usize| {
                let c = i % channels;
                factor[c] * g(i) + shift[c] * (x[i] - mean[c]) + mean[c]
            };
            let expected: Vec<f32> = (0..size).map(value).collect();
            assert!(is_close(&dx, &expected), "{channels} channels");
        }
    }
}
