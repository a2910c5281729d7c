//! Steps of recurrent layers: sums = projected input + h·Rᵀ, and the cell's new state out of them
//! while they are in registers.

use super::lanes::{Lanes, Real, Work};
use super::recurrent::{Cell, Panels, Rows, load, product};
use crate::recurrent::Activation;

/// What the step of any cell reads: this step's projected inputs, the rows that take part, and how
/// gates are made out of sums.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a, T> {
    pub(crate) projected: Rows<'a, T>,
    /// The state before, padded units a row.
    pub(crate) h: Rows<'a, T>,
    pub(crate) rows: &'a [usize],
    pub(crate) clip: Option<T>,
    pub(crate) activations: [Activation; 3],
}

impl<T: Real> Step<'_, T> {
    #[inline(always)]
    fn projected<L: Lanes<Item = T>, const V: usize>(&self, row: usize, column: usize) -> [L; V] {
        load(self.projected.data, row * self.projected.stride + column)
    }

    /// Activation number `index` of the sum, clipped.
    #[inline(always)]
    fn gate<L: Lanes<Item = T>>(&self, index: usize, sum: L) -> L {
        let sum = match self.clip {
            Some(bound) => sum.bounded(L::splat(bound)),
            None => sum,
        };
        activate(self.activations[index], sum)
    }
}

#[inline(always)]
fn activate<L: Lanes>(activation: Activation, x: L) -> L {
    match activation {
        Activation::Sigmoid => x.sigmoid(),
        Activation::Tanh => x.tanh(),
        Activation::Relu => x.relu(),
        other => {
            let mut lanes = [L::Item::default(); 16];
            x.store(&mut lanes);
            activate_each(other, &mut lanes[..L::COUNT]);
            L::load(&lanes)
        }
    }
}

#[inline(never)]
fn activate_each<T: Real>(activation: Activation, values: &mut [T]) {
    for value in values {
        *value = T::from_f64(activation.apply(value.to_f64()));
    }
}

/// values ← f(values).
pub(crate) struct Activate<'a> {
    pub(crate) activation: Activation,
    pub(crate) values: &'a mut [f32],
}

impl Work<f32> for Activate<'_> {
    #[inline(always)]
    fn run<L: Lanes<Item = f32>>(self) {
        let mut vectors = self.values.chunks_exact_mut(L::COUNT);
        for values in &mut vectors {
            activate(self.activation, L::load(values)).store(values);
        }
        let rest = vectors.into_remainder();
        let mut lanes = [0.0; 16];
        lanes[..rest.len()].copy_from_slice(rest);
        activate(self.activation, L::load(&lanes)).store(&mut lanes);
        rest.copy_from_slice(&lanes[..rest.len()]);
    }
}

/// hₜ = f(sum).
pub(crate) struct RnnStep<'a, T> {
    pub(crate) step: Step<'a, T>,
    pub(crate) panels: &'a Panels<T>,
    pub(crate) next: &'a mut [T],
}

impl<L: Lanes> Cell<L, 4> for RnnStep<'_, L::Item> {
    #[inline(always)]
    fn start(&self, row: usize, panel: usize) -> [L; 4] {
        self.step.projected(row, panel * 4 * L::COUNT)
    }

    #[inline(always)]
    fn finish(&mut self, row: usize, panel: usize, sums: [L; 4]) {
        let at = row * self.step.h.stride + panel * 4 * L::COUNT;
        let next = &mut self.next[at..at + 4 * L::COUNT];
        for v in 0..4 {
            self.step.gate(0, sums[v]).store(&mut next[v * L::COUNT..]);
        }
    }
}

impl<T: Real> Work<T> for RnnStep<'_, T> {
    #[inline(always)]
    fn run<L: Lanes<Item = T>>(mut self) {
        let (step, panels) = (self.step, self.panels);
        product::<L, _, 4>(panels, step.h, step.rows, &mut self);
    }
}

/// i, o, f = f(sums); cₜ = f⊙c + i⊙g(sum); hₜ = o⊙h(cₜ).
pub(crate) struct LstmStep<'a, T> {
    pub(crate) step: Step<'a, T>,
    pub(crate) panels: &'a Panels<T>,
    pub(crate) next: &'a mut [T],
    pub(crate) c: &'a mut [T],
    /// What i, o and f see of c, padded units each.
    pub(crate) peepholes: Option<&'a [Vec<T>; 3]>,
    /// f = 1 − i.
    pub(crate) couples: bool,
}

impl<L: Lanes> Cell<L, 4> for LstmStep<'_, L::Item> {
    #[inline(always)]
    fn start(&self, row: usize, panel: usize) -> [L; 4] {
        self.step.projected(row, panel * 4 * L::COUNT)
    }

    #[inline(always)]
    fn finish(&mut self, row: usize, panel: usize, [mut i, mut o, mut f, g]: [L; 4]) {
        let unit = panel * L::COUNT;
        let at = row * self.step.h.stride + unit;
        let c = L::load(&self.c[at..]);
        if let Some([to_i, _, to_f]) = self.peepholes {
            i = L::load(&to_i[unit..]).fma(c, i);
            f = L::load(&to_f[unit..]).fma(c, f);
        }
        let step = &self.step;
        let i = step.gate(0, i);
        let f = if self.couples { one::<L>().sub(i) } else { step.gate(0, f) };
        let c = f.fma(c, i.mul(step.gate(1, g)));
        if let Some([_, to_o, _]) = self.peepholes {
            o = L::load(&to_o[unit..]).fma(c, o);
        }
        let h = step.gate(0, o).mul(activate(step.activations[2], c));
        c.store(&mut self.c[at..]);
        h.store(&mut self.next[at..]);
    }
}

#[inline(always)]
fn one<L: Lanes>() -> L {
    L::splat(L::Item::from_f64(1.0))
}

impl<T: Real> Work<T> for LstmStep<'_, T> {
    #[inline(always)]
    fn run<L: Lanes<Item = T>>(mut self) {
        let (step, panels) = (self.step, self.panels);
        product::<L, _, 4>(panels, step.h, step.rows, &mut self);
    }
}

/// z, r = f(sums); hₜ = (1 − z)⊙g(x + r⊙sum) + z⊙h: the reset gate after the product.
pub(crate) struct GruStep<'a, T> {
    pub(crate) step: Step<'a, T>,
    pub(crate) panels: &'a Panels<T>,
    pub(crate) next: &'a mut [T],
    /// What the product of the third gate is added to, per padded unit.
    pub(crate) bias: &'a [T],
}

/// (1 − z)·candidate + z·h.
#[inline(always)]
fn mixed<L: Lanes>(z: L, candidate: L, h: L) -> L {
    z.fma(h.sub(candidate), candidate)
}

impl<L: Lanes> Cell<L, 6> for GruStep<'_, L::Item> {
    #[inline(always)]
    fn start(&self, row: usize, panel: usize) -> [L; 6] {
        let [z0, z1, r0, r1] = self.step.projected(row, panel * 6 * L::COUNT);
        let [h0, h1] = load(self.bias, panel * 2 * L::COUNT);
        [z0, z1, r0, r1, h0, h1]
    }

    #[inline(always)]
    fn finish(&mut self, row: usize, panel: usize, sums: [L; 6]) {
        let (step, unit) = (&self.step, panel * 2 * L::COUNT);
        let at = row * step.h.stride + unit;
        let h: [L; 2] = load(step.h.data, at);
        let x: [L; 2] = step.projected(row, (panel * 6 + 4) * L::COUNT);
        let next = &mut self.next[at..at + 2 * L::COUNT];
        for v in 0..2 {
            let z = step.gate(0, sums[v]);
            let r = step.gate(0, sums[2 + v]);
            let candidate = step.gate(1, r.fma(sums[4 + v], x[v]));
            mixed(z, candidate, h[v]).store(&mut next[v * L::COUNT..]);
        }
    }
}

impl<T: Real> Work<T> for GruStep<'_, T> {
    #[inline(always)]
    fn run<L: Lanes<Item = T>>(mut self) {
        let (step, panels) = (self.step, self.panels);
        product::<L, _, 6>(panels, step.h, step.rows, &mut self);
    }
}

/// As [`GruStep`], where sums hold the recurrent products of all gates and the third's bias, and the
/// projected inputs are to be added.
pub(crate) struct GruGates<'a> {
    pub(crate) step: Step<'a, f32>,
    pub(crate) sums: Rows<'a, f32>,
    /// Without depth.
    pub(crate) panels: &'a Panels<f32>,
    pub(crate) next: &'a mut [f32],
}

impl<L: Lanes<Item = f32>> Cell<L, 6> for GruGates<'_> {
    #[inline(always)]
    fn start(&self, row: usize, panel: usize) -> [L; 6] {
        load(self.sums.data, row * self.sums.stride + panel * 6 * L::COUNT)
    }

    #[inline(always)]
    fn finish(&mut self, row: usize, panel: usize, sums: [L; 6]) {
        let (step, unit) = (&self.step, panel * 2 * L::COUNT);
        let at = row * step.h.stride + unit;
        let h: [L; 2] = load(step.h.data, at);
        let x: [L; 6] = step.projected(row, panel * 6 * L::COUNT);
        let next = &mut self.next[at..at + 2 * L::COUNT];
        for v in 0..2 {
            let z = step.gate(0, sums[v].add(x[v]));
            let r = step.gate(0, sums[2 + v].add(x[2 + v]));
            let candidate = step.gate(1, r.fma(sums[4 + v], x[4 + v]));
            mixed(z, candidate, h[v]).store(&mut next[v * L::COUNT..]);
        }
    }
}

impl Work<f32> for GruGates<'_> {
    #[inline(always)]
    fn run<L: Lanes<Item = f32>>(mut self) {
        let (step, panels) = (self.step, self.panels);
        product::<L, _, 6>(panels, step.h, step.rows, &mut self);
    }
}

/// z, r = f(sums); writes z and r⊙h: the first half of a GRU whose reset gate comes before the
/// product.
pub(crate) struct ResetStep<'a, T> {
    pub(crate) step: Step<'a, T>,
    pub(crate) panels: &'a Panels<T>,
    pub(crate) z: &'a mut [T],
    pub(crate) reset: &'a mut [T],
}

impl<L: Lanes> Cell<L, 4> for ResetStep<'_, L::Item> {
    #[inline(always)]
    fn start(&self, row: usize, panel: usize) -> [L; 4] {
        self.step.projected(row, panel * 4 * L::COUNT)
    }

    #[inline(always)]
    fn finish(&mut self, row: usize, panel: usize, sums: [L; 4]) {
        let step = &self.step;
        let at = row * step.h.stride + panel * 2 * L::COUNT;
        let h: [L; 2] = load(step.h.data, at);
        for v in 0..2 {
            let at = at + v * L::COUNT;
            step.gate(0, sums[v]).store(&mut self.z[at..]);
            step.gate(0, sums[2 + v]).mul(h[v]).store(&mut self.reset[at..]);
        }
    }
}

impl<T: Real> Work<T> for ResetStep<'_, T> {
    #[inline(always)]
    fn run<L: Lanes<Item = T>>(mut self) {
        let (step, panels) = (self.step, self.panels);
        product::<L, _, 4>(panels, step.h, step.rows, &mut self);
    }
}

/// hₜ = (1 − z)⊙g(sum) + z⊙h, the sum over `reset`: the second half.
pub(crate) struct CandidateStep<'a, T> {
    pub(crate) step: Step<'a, T>,
    pub(crate) panels: &'a Panels<T>,
    /// Column of the projected inputs at which this gate starts.
    pub(crate) column: usize,
    pub(crate) z: &'a [T],
    pub(crate) reset: &'a [T],
    pub(crate) next: &'a mut [T],
}

impl<L: Lanes> Cell<L, 4> for CandidateStep<'_, L::Item> {
    #[inline(always)]
    fn start(&self, row: usize, panel: usize) -> [L; 4] {
        self.step.projected(row, self.column + panel * 4 * L::COUNT)
    }

    #[inline(always)]
    fn finish(&mut self, row: usize, panel: usize, sums: [L; 4]) {
        let step = &self.step;
        let at = row * step.h.stride + panel * 4 * L::COUNT;
        let (h, z): ([L; 4], [L; 4]) = (load(step.h.data, at), load(self.z, at));
        let next = &mut self.next[at..at + 4 * L::COUNT];
        for v in 0..4 {
            mixed(z[v], step.gate(1, sums[v]), h[v]).store(&mut next[v * L::COUNT..]);
        }
    }
}

impl<T: Real> Work<T> for CandidateStep<'_, T> {
    #[inline(always)]
    fn run<L: Lanes<Item = T>>(mut self) {
        let (inputs, panels) = (Rows { data: self.reset, stride: self.step.h.stride }, self.panels);
        let rows = self.step.rows;
        product::<L, _, 4>(panels, inputs, rows, &mut self);
    }
}
