//! The cells of recurrent layers in training: gates out of sums, forward, and gradients of the sums
//! out of those of the state, backward. A row holds its gates next to each other, `hidden` values
//! each; going back, the gradients of the sums take the place of the gates.
#![allow(clippy::needless_range_loop)] // of many slices of one size, walked together

use super::lanes::Real;
use super::recurrent_steps::Activate;
use super::{math, vectorized};
use crate::recurrent::Activation;

/// How gates are made out of sums.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) activations: [Activation; 3],
    pub(crate) clip: Option<f32>,
}

impl Rule {
    /// Whether the derivatives of the first `count` activations follow from their values.
    pub(crate) fn has_slopes_of_values(&self, count: usize) -> bool {
        self.clip.is_none() && self.activations[..count].iter().all(|a| a.has_slope_of_value())
    }
}

/// The rows of one step that take part.
pub(crate) struct Cells<'a> {
    pub(crate) hidden: usize,
    pub(crate) rows: &'a [usize],
    pub(crate) rule: Rule,
    /// Sums or gates, `stride` a row.
    pub(crate) gates: &'a mut [f32],
    /// Derivatives of the gates to their sums, where they do not follow from the gates.
    pub(crate) slopes: Option<&'a mut [f32]>,
    pub(crate) stride: usize,
    /// Size of a row of dh, the gradient of the state; other states have `hidden`.
    pub(crate) padded: usize,
}

/// Scratch that a step back needs, times the hidden size.
pub(crate) const SCRATCH: usize = 4;

/// Consecutive parts of a row.
#[inline(always)]
fn parts<const N: usize>(row: &mut [f32], size: usize) -> [&mut [f32]; N] {
    let mut rest = row;
    std::array::from_fn(|_| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(size);
        rest = after;
        part
    })
}

impl Cells<'_> {
    /// A row's gates, and their slopes.
    #[inline(always)]
    fn row<const N: usize>(&mut self, row: usize) -> ([&mut [f32]; N], [Option<&mut [f32]>; N]) {
        let at = row * self.stride;
        let gates = parts(&mut self.gates[at..at + N * self.hidden], self.hidden);
        let slopes = match &mut self.slopes {
            Some(slopes) => parts(&mut slopes[at..at + N * self.hidden], self.hidden).map(Some),
            None => std::array::from_fn(|_| None),
        };
        (gates, slopes)
    }
}

/// Activation of values in place.
fn activate(activation: Activation, values: &mut [f32]) {
    f32::dispatch(Activate { activation, values });
}

/// Sums become a gate, by activation number `index`.
#[inline(always)]
fn gate(rule: Rule, index: usize, values: &mut [f32], slopes: Option<&mut [f32]>) {
    match slopes {
        None => activate(rule.activations[index], values),
        Some(slopes) => gate_with_slopes(rule, index, values, slopes),
    }
}

#[inline(never)]
fn gate_with_slopes(rule: Rule, index: usize, values: &mut [f32], slopes: &mut [f32]) {
    let activation = rule.activations[index];
    let bound = rule.clip.map_or(f64::INFINITY, f64::from);
    for (value, slope) in values.iter_mut().zip(slopes) {
        let sum = f64::from(*value);
        let bounded = if sum.is_nan() { sum } else { sum.clamp(-bound, bound) };
        *value = activation.apply(bounded) as f32;
        *slope = if sum == bounded { activation.slope(sum) as f32 } else { 0.0 };
    }
}

/// gate ← d·f′, with f′ as saved, or out of the gate's value.
#[inline(always)]
fn descend(activation: Activation, gate: &mut [f32], slopes: Option<&mut [f32]>, d: &[f32]) {
    let pairs = gate.iter_mut().zip(d);
    match (slopes, activation) {
        (Some(slopes), _) => pairs.zip(slopes).for_each(|((y, d), slope)| *y = d * *slope),
        (None, Activation::Sigmoid) => pairs.for_each(|(y, d)| *y = d * *y * (1.0 - *y)),
        (None, Activation::Tanh) => pairs.for_each(|(y, d)| *y = d * (1.0 - *y * *y)),
        (None, Activation::Relu) => pairs.for_each(|(y, d)| *y = if *y > 0.0 { *d } else { 0.0 }),
        (None, _) => unreachable!("slopes are saved where values do not tell them"),
    }
}

/// y = f(x) and f′(x).
#[inline(always)]
fn with_slopes(f: Activation, x: &[f32], y: &mut [f32], slopes: &mut [f32]) {
    y.copy_from_slice(x);
    activate(f, y);
    match f {
        Activation::Sigmoid => {
            slopes.iter_mut().zip(&*y).for_each(|(slope, y)| *slope = y * (1.0 - y));
        }
        Activation::Tanh => slopes.iter_mut().zip(&*y).for_each(|(slope, y)| *slope = 1.0 - y * y),
        other => slopes_each(other, x, slopes),
    }
}

#[inline(never)]
fn slopes_each(activation: Activation, x: &[f32], slopes: &mut [f32]) {
    for (slope, &x) in slopes.iter_mut().zip(x) {
        *slope = activation.slope(f64::from(x)) as f32;
    }
}

/// sums += weights⊙x.
#[inline(always)]
fn add_products<const FMA: bool>(sums: &mut [f32], weights: &[f32], x: &[f32]) {
    for ((sum, &weight), &x) in sums.iter_mut().zip(weights).zip(x) {
        *sum = math::fma::<FMA>(weight, x, *sum);
    }
}

/// The part of a row's state, `size` a row.
#[inline(always)]
fn of(row: usize, size: usize) -> std::ops::Range<usize> {
    row * size..(row + 1) * size
}

vectorized! {
    /// h = f(sum).
    pub(crate) fn rnn_forward<FMA>(cells: Cells, h: &mut [f32]) {
        let (size, mut cells) = (cells.hidden, cells);
        for &row in cells.rows {
            let rule = cells.rule;
            let ([y], [slopes]) = cells.row::<1>(row);
            gate(rule, 0, y, slopes);
            h[of(row, size)].copy_from_slice(y);
        }
    }

    /// dsum = dh·f′; nothing of dh is left for the step before.
    pub(crate) fn rnn_backward<FMA>(cells: Cells, dh: &mut [f32]) {
        let (size, padded, mut cells) = (cells.hidden, cells.padded, cells);
        for &row in cells.rows {
            let f = cells.rule.activations[0];
            let ([y], [slopes]) = cells.row::<1>(row);
            descend(f, y, slopes, &dh[row * padded..][..size]);
            dh[row * padded..][..size].fill(0.0);
        }
    }

    /// i, o, f = f(sums + peepholes⊙c); c ← f⊙c + i⊙g(sum); h = o⊙h(c). With `couples`, f = 1 − i.
    pub(crate) fn lstm_forward<FMA>(
        cells: Cells,
        peepholes: Option<&[f32]>,
        couples: bool,
        c: &mut [f32],
        h: &mut [f32],
    ) {
        let (size, mut cells) = (cells.hidden, cells);
        for &row in cells.rows {
            let rule = cells.rule;
            let ([i, o, f, g], [si, so, sf, sg]) = cells.row::<4>(row);
            let (c, h) = (&mut c[of(row, size)], &mut h[of(row, size)]);
            if let Some(p) = peepholes {
                add_products::<FMA>(i, &p[of(0, size)], c);
                add_products::<FMA>(f, &p[of(2, size)], c);
            }
            gate(rule, 0, i, si);
            if couples {
                f.iter_mut().zip(&*i).for_each(|(f, i)| *f = 1.0 - i);
            } else {
                gate(rule, 0, f, sf);
            }
            gate(rule, 1, g, sg);
            for (((c, &f), &i), &g) in c.iter_mut().zip(&*f).zip(&*i).zip(&*g) {
                *c = math::fma::<FMA>(f, *c, i * g);
            }
            if let Some(p) = peepholes {
                add_products::<FMA>(o, &p[of(1, size)], c);
            }
            gate(rule, 0, o, so);
            h.copy_from_slice(c);
            activate(rule.activations[2], h);
            h.iter_mut().zip(&*o).for_each(|(h, o)| *h *= o);
        }
    }

    /// do = dh⊙h(c), dc += dh⊙o⊙h′(c); di = dc⊙g, dg = dc⊙i, df = dc⊙c₋₁, dc₋₁ = dc⊙f, each gate's
    /// times its slope, and through the peepholes; nothing of dh is left for the step before.
    pub(crate) fn lstm_backward<FMA>(
        cells: Cells,
        peepholes: Option<&[f32]>,
        couples: bool,
        c: &[f32],
        before: &[f32],
        dh: &mut [f32],
        dc: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (size, padded, mut cells) = (cells.hidden, cells.padded, cells);
        let [s, t, u, v] = parts::<4>(scratch, size);
        for &row in cells.rows {
            let [inner, outer, last] = cells.rule.activations;
            let ([i, o, f, g], [si, so, sf, sg]) = cells.row::<4>(row);
            let (c, before) = (&c[of(row, size)], &before[of(row, size)]);
            let (dh, dc) = (&mut dh[row * padded..][..size], &mut dc[of(row, size)]);
            with_slopes(last, c, s, t);
            for k in 0..size {
                dc[k] = math::fma::<FMA>(dh[k] * o[k], t[k], dc[k]);
                s[k] *= dh[k];
            }
            dh.fill(0.0);
            descend(inner, o, so, s);
            if let Some(p) = peepholes {
                add_products::<FMA>(dc, &p[of(1, size)], o);
            }
            for k in 0..size {
                s[k] = dc[k] * g[k];
                t[k] = dc[k] * i[k];
                u[k] = dc[k] * before[k];
                v[k] = dc[k] * f[k];
            }
            if couples {
                s.iter_mut().zip(&*u).for_each(|(s, u)| *s -= u);
                f.fill(0.0);
            } else {
                descend(inner, f, sf, u);
            }
            descend(inner, i, si, s);
            descend(outer, g, sg, t);
            dc.copy_from_slice(v);
            if let Some(p) = peepholes {
                add_products::<FMA>(dc, &p[of(0, size)], i);
                add_products::<FMA>(dc, &p[of(2, size)], f);
            }
        }
    }

    /// z, r = f(sums). Where the reset gate comes before the product, the fourth part of a row
    /// becomes r⊙h.
    pub(crate) fn gru_gates<FMA>(cells: Cells, resets_after: bool, h: &[f32]) {
        let (size, mut cells) = (cells.hidden, cells);
        for &row in cells.rows {
            let rule = cells.rule;
            let ([z, r, _, product], [sz, sr, _, _]) = cells.row::<4>(row);
            gate(rule, 0, z, sz);
            gate(rule, 0, r, sr);
            if !resets_after {
                for ((y, &r), &h) in product.iter_mut().zip(&*r).zip(&h[of(row, size)]) {
                    *y = r * h;
                }
            }
        }
    }

    /// The candidate g(sum), or g(sum + r⊙product); h ← (1 − z)⊙candidate + z⊙h.
    pub(crate) fn gru_state<FMA>(cells: Cells, resets_after: bool, h: &mut [f32]) {
        let (size, mut cells) = (cells.hidden, cells);
        for &row in cells.rows {
            let rule = cells.rule;
            let ([z, r, y, product], [_, _, sy, _]) = cells.row::<4>(row);
            if resets_after {
                add_products::<FMA>(y, r, product);
            }
            gate(rule, 1, y, sy);
            for ((h, &z), &y) in h[of(row, size)].iter_mut().zip(&*z).zip(&*y) {
                *h = math::fma::<FMA>(z, *h - y, y);
            }
        }
    }

    /// dz = dh⊙(h₋₁ − y), dy = dh⊙(1 − z) for the candidate y, each times its slope; dh ← dh⊙z. Where
    /// the reset gate comes after the product: dr = dy⊙product, and dproduct = dy⊙r in its place.
    pub(crate) fn gru_backward<FMA>(
        cells: Cells,
        resets_after: bool,
        before: &[f32],
        dh: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (size, padded, mut cells) = (cells.hidden, cells.padded, cells);
        let [s, t, _, _] = parts::<4>(scratch, size);
        for &row in cells.rows {
            let [inner, outer, _] = cells.rule.activations;
            let ([z, r, y, product], [sz, sr, sy, _]) = cells.row::<4>(row);
            let (before, dh) = (&before[of(row, size)], &mut dh[row * padded..][..size]);
            for k in 0..size {
                s[k] = dh[k] * (before[k] - y[k]);
                t[k] = dh[k] * (1.0 - z[k]);
                dh[k] *= z[k];
            }
            descend(inner, z, sz, s);
            descend(outer, y, sy, t);
            if resets_after {
                for k in 0..size {
                    s[k] = y[k] * product[k];
                    product[k] = y[k] * r[k];
                }
                descend(inner, r, sr, s);
            }
        }
    }

    /// Where the reset gate comes before the product, `d` being the gradient of r⊙h₋₁:
    /// dh += d⊙r, dr = d⊙h₋₁.
    pub(crate) fn gru_reset_backward<FMA>(
        cells: Cells,
        before: &[f32],
        d: &mut [f32],
        dh: &mut [f32],
    ) {
        let (size, padded, mut cells) = (cells.hidden, cells.padded, cells);
        for &row in cells.rows {
            let inner = cells.rule.activations[0];
            let ([_, r, _, _], [_, sr, _, _]) = cells.row::<4>(row);
            let d = &mut d[row * padded..][..size];
            add_products::<FMA>(&mut dh[row * padded..][..size], d, r);
            d.iter_mut().zip(&before[of(row, size)]).for_each(|(d, before)| *d *= before);
            descend(inner, r, sr, d);
        }
    }

    /// sums += a⊙b, summed over rows of `size`.
    pub(crate) fn add_column_products<FMA>(sums: &mut [f32], a: &[f32], b: &[f32]) {
        add_products::<FMA>(sums, a, b);
    }
}
