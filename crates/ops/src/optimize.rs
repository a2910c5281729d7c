//! How optimizers change weights: rules for single elements, carried out over whole tensors.

use attar_tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::kernels::optimize::{self, AdamFactors, SgdFactors};
use crate::{Flow, Pool};

/// Elements that one thread works on at a time.
const BLOCK: usize = 1 << 15;

/// How one step changes weights, element by element.
pub trait Rule: Sync {
    /// Changes weights by their gradients. `first` and `second` are moments, empty where the rule
    /// keeps none. Whether all new weights are finite.
    fn apply(&self, w: &mut [f32], g: &[f32], first: &mut [f32], second: &mut [f32]) -> bool;

    /// What a weight is multiplied by whose gradient and moments are zero, where the rule does
    /// nothing else to it.
    fn idle(&self) -> Option<f32>;
}

/// Adam and `AdamW` (Kingma and Ba, 2015; Loshchilov and Hutter, 2019), as `PyTorch` computes them:
/// m = β₁·m + (1 − β₁)·g, v = β₂·v + (1 − β₂)·g²,
/// w = (1 − η·λ)·w − η/(1 − β₁ᵗ) · m/(√v/√(1 − β₂ᵗ) + ε).
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    pub learning_rate: f64,
    pub betas: [f64; 2],
    pub epsilon: f64,
    /// λ.
    pub weight_decay: f64,
    /// Whether λ·w is added to the gradient (Adam), and not taken from the weight (`AdamW`).
    pub is_coupled: bool,
    /// What gradients are multiplied by first.
    pub scale: f32,
    /// Steps, this one included.
    pub step: u64,
}

impl Adam {
    /// 1 − η·λ.
    fn decay(&self) -> f32 {
        let decay = if self.is_coupled { 0.0 } else { self.weight_decay };
        (1.0 - self.learning_rate * decay) as f32
    }

    fn factors(&self) -> AdamFactors {
        let [beta1, beta2] = self.betas;
        let power = |beta: f64| 1.0 - beta.powf(self.step as f64);
        let l2 = if self.is_coupled { self.weight_decay } else { 0.0 };
        AdamFactors {
            scale: self.scale,
            decay: self.decay(),
            l2: l2 as f32,
            beta2: beta2 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            bias2: (1.0 / power(beta2).sqrt()) as f32,
            epsilon: self.epsilon as f32,
            step_size: (self.learning_rate / power(beta1)) as f32,
        }
    }
}

impl Rule for Adam {
    fn apply(&self, w: &mut [f32], g: &[f32], first: &mut [f32], second: &mut [f32]) -> bool {
        optimize::adam(w, g, first, second, &self.factors())
    }

    fn idle(&self) -> Option<f32> {
        let is_idle = !self.is_coupled || self.weight_decay == 0.0;
        is_idle.then(|| self.decay())
    }
}

/// Stochastic gradient descent as `PyTorch` computes it: g = g + λ·w, b = μ·b + g, w −= η·b; with
/// Nesterov's form w −= η·(g + μ·b).
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    pub learning_rate: f64,
    /// μ; 0 keeps no moment.
    pub momentum: f64,
    /// Share of a gradient that momentum does not take, except in the first step.
    pub dampening: f64,
    pub is_nesterov: bool,
    /// λ.
    pub weight_decay: f64,
    /// What gradients are multiplied by first.
    pub scale: f32,
    /// Steps, this one included.
    pub step: u64,
}

impl Rule for Sgd {
    fn apply(&self, w: &mut [f32], g: &[f32], first: &mut [f32], _: &mut [f32]) -> bool {
        let dampening = if self.step == 1 { 0.0 } else { self.dampening };
        let by = SgdFactors {
            scale: self.scale,
            l2: self.weight_decay as f32,
            momentum: self.momentum as f32,
            one_minus_dampening: (1.0 - dampening) as f32,
            rate: self.learning_rate as f32,
        };
        match (first.is_empty(), self.is_nesterov) {
            (true, _) => optimize::sgd(w, g, &by),
            (false, false) => optimize::sgd_momentum(w, g, first, &by),
            (false, true) => optimize::sgd_nesterov(w, g, first, &by),
        }
    }

    fn idle(&self) -> Option<f32> {
        (self.weight_decay == 0.0).then_some(1.0)
    }
}

/// What a rule keeps of one weight.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// One tensor of the weight's shape for each moment, up to two.
    pub tensors: Vec<Tensor>,
    /// Of a table that only rows were changed of so far: which rows may have moments.
    pub touched: Option<Vec<bool>>,
}

impl Moments {
    /// Moments that are zero.
    pub fn zeros(shape: &[usize], count: usize) -> Self {
        let tensors = vec![Tensor::zeros(DType::F32, shape); count];
        let touched = Some(vec![false; shape.first().copied().unwrap_or(0)]);
        Self { tensors, touched }
    }

    /// Moments of a weight of `shape`, as they were kept.
    pub fn of(tensors: Vec<Tensor>, shape: &[usize]) -> Self {
        let row_count = shape.first().copied().unwrap_or(0);
        let is_zero = |tensor: &Tensor, row: usize| {
            let width = tensor.element_count() / row_count;
            tensor.slice::<f32>()[row * width..][..width].iter().all(|&x| x == 0.0)
        };
        let touched = |row| tensors.iter().any(|tensor| !is_zero(tensor, row));
        Self { touched: Some((0..row_count).map(touched).collect()), tensors }
    }

    fn parts(&mut self) -> [&mut [f32]; 2] {
        let mut parts = self.tensors.iter_mut().map(Tensor::slice_mut::<f32>);
        [parts.next().unwrap_or_default(), parts.next().unwrap_or_default()]
    }
}

/// Changes a weight by its gradient, on every thread. Whether all weights are finite afterwards.
/// Rows of a gradient give, bit for bit, what the whole tensor would give; they must be
/// [`merged`].
///
/// # Panics
/// When gradient or moments are not of the weight's shape.
pub fn update(
    rule: &dyn Rule,
    weight: &mut Tensor,
    gradient: &Flow,
    moments: &mut Moments,
) -> bool {
    match gradient {
        Flow::Dense(gradient) => {
            assert_eq!(weight.shape(), gradient.shape(), "a gradient has its weight's shape");
            moments.touched = None;
            let weight = weight.slice_mut::<f32>();
            update_dense(rule, weight, gradient.slice::<f32>(), moments.parts())
        }
        Flow::Rows { shape, indices, rows } => {
            assert_eq!(weight.shape(), shape, "a gradient has its weight's shape");
            let mut touched = moments.touched.take();
            if let Some(touched) = &mut touched {
                indices.iter().for_each(|&index| touched[index] = true);
            }
            let width = shape[1..].iter().product();
            let table = Table {
                rule,
                first_row: 0,
                width,
                weights: weight.slice_mut::<f32>(),
                moments: moments.parts(),
                indices,
                gradients: rows.slice::<f32>(),
                touched: touched.as_deref(),
            };
            let is_finite = table.update();
            moments.touched = touched;
            is_finite
        }
    }
}

fn update_dense(rule: &dyn Rule, w: &mut [f32], g: &[f32], moments: [&mut [f32]; 2]) -> bool {
    let [first, second] = moments;
    if w.len() <= BLOCK {
        return rule.apply(w, g, first, second);
    }
    let middle = (w.len() / 2).next_multiple_of(16);
    let (w, w_end) = w.split_at_mut(middle);
    let (g, g_end) = g.split_at(middle);
    let (first, first_end) = first.split_at_mut(middle.min(first.len()));
    let (second, second_end) = second.split_at_mut(middle.min(second.len()));
    let (a, b) = rayon::join(
        || update_dense(rule, w, g, [first, second]),
        || update_dense(rule, w_end, g_end, [first_end, second_end]),
    );
    a && b
}

/// Part of a table, and the rows of the gradient that fall into it.
struct Table<'a> {
    rule: &'a dyn Rule,
    first_row: usize,
    width: usize,
    weights: &'a mut [f32],
    moments: [&'a mut [f32]; 2],
    indices: &'a [usize],
    gradients: &'a [f32],
    touched: Option<&'a [bool]>,
}

impl Table<'_> {
    fn update(self) -> bool {
        let row_count = self.weights.len().checked_div(self.width).unwrap_or(0);
        if self.weights.len() <= BLOCK || row_count < 2 {
            return self.update_rows();
        }
        let (rule, first_row, width) = (self.rule, self.first_row, self.width);
        let middle = row_count / 2;
        let (weights, weights_end) = self.weights.split_at_mut(middle * width);
        let [first, second] = self.moments;
        let (first, first_end) = first.split_at_mut((middle * width).min(first.len()));
        let (second, second_end) = second.split_at_mut((middle * width).min(second.len()));
        let border = self.indices.partition_point(|&index| index < first_row + middle);
        let (indices, indices_end) = self.indices.split_at(border);
        let (gradients, gradients_end) = self.gradients.split_at(border * width);
        let touched = self.touched;
        let moments = [first, second];
        let start = Table { rule, first_row, width, weights, moments, indices, gradients, touched };
        let end = Table {
            rule,
            first_row: first_row + middle,
            width,
            weights: weights_end,
            moments: [first_end, second_end],
            indices: indices_end,
            gradients: gradients_end,
            touched,
        };
        let (a, b) = rayon::join(|| start.update(), || end.update());
        a && b
    }

    fn update_rows(self) -> bool {
        let width = self.width;
        let idle = self.rule.idle();
        let zeros = vec![0.0; width];
        let mut flowing = self.indices.iter().zip(self.gradients.chunks_exact(width.max(1)));
        let mut next = flowing.next();
        let mut is_finite = true;
        let [first, second] = self.moments;
        for (offset, w) in self.weights.chunks_exact_mut(width.max(1)).enumerate() {
            let row = self.first_row + offset;
            let mut gradient = zeros.as_slice();
            let mut is_touched = self.touched.is_none_or(|touched| touched[row]);
            if let Some((_, rows)) = next.filter(|(index, _)| **index == row) {
                gradient = rows;
                is_touched = true;
                next = flowing.next();
            }
            match idle.filter(|_| !is_touched) {
                Some(1.0) => {}
                Some(factor) => optimize::scale(w, factor),
                None => {
                    let at = offset * width;
                    let m = first.get_mut(at..at + width).unwrap_or_default();
                    let v = second.get_mut(at..at + width).unwrap_or_default();
                    is_finite &= self.rule.apply(w, gradient, m, v);
                }
            }
        }
        is_finite
    }
}

/// A gradient with every row once, in order; a dense one as it is.
pub fn merged(gradient: Flow, pool: &Pool) -> Flow {
    let Flow::Rows { shape, indices, rows } = gradient else { return gradient };
    let width: usize = shape[1..].iter().product();
    let mut order: Vec<usize> = (0..indices.len()).collect();
    order.sort_by_key(|&at| indices[at]);
    let mut unique: Vec<usize> = order.iter().map(|&at| indices[at]).collect();
    unique.dedup();
    let mut sums = pool.tensor(DType::F32, &[unique.len(), width]);
    let (from, to) = (rows.slice::<f32>(), sums.slice_mut::<f32>());
    let groups = order.chunk_by(|&a, &b| indices[a] == indices[b]);
    for (group, sum) in groups.zip(to.chunks_exact_mut(width.max(1))) {
        sum.copy_from_slice(&from[group[0] * width..][..width]);
        for &at in &group[1..] {
            crate::kernels::elementwise::add_assign(sum, &from[at * width..][..width]);
        }
    }
    pool.recycle(rows);
    Flow::Rows { shape, indices: unique, rows: sums }
}

/// Σ x² over a gradient; summed in one order, whatever the number of threads and whether its rows
/// are [`merged`] or whole.
pub fn square_sum(gradient: &Flow) -> f64 {
    let rows_each = |width: usize| (BLOCK / width.max(1)).max(1);
    let total = |rows: &[f32], width: usize| -> f64 {
        rows.chunks(width.max(1)).map(optimize::square_sum).sum()
    };
    match gradient {
        Flow::Dense(tensor) => {
            let width = match tensor.shape() {
                [] | [_] => tensor.element_count(),
                [_, rest @ ..] => rest.iter().product(),
            };
            let values = tensor.slice::<f32>();
            let blocks = values.par_chunks((rows_each(width) * width).max(1));
            let sums: Vec<f64> = blocks.map(|block| total(block, width)).collect();
            sums.into_iter().sum()
        }
        Flow::Rows { shape, indices, rows } => {
            let width: usize = shape[1..].iter().product();
            let each = rows_each(width);
            let mut values = rows.slice::<f32>();
            let mut sum = 0.0;
            for block in indices.chunk_by(|&a, &b| a / each == b / each) {
                let (rows, rest) = values.split_at(block.len() * width);
                sum += total(rows, width);
                values = rest;
            }
            sum
        }
    }
}

/// Moves a moving average towards the weights: a = keep·a + (1 − keep)·w.
pub fn average(average: &mut [f32], weights: &[f32], keep: f64) {
    let factor = (1.0 - keep) as f32;
    average.par_chunks_mut(BLOCK).zip(weights.par_chunks(BLOCK)).for_each(|(average, weights)| {
        optimize::average(average, weights, factor);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let value = |i: usize| ((i as u32 + 1).wrapping_mul(2_654_435_761) ^ seed) as f32 / 4e9;
        (0..count).map(|i| value(i) - 0.5).collect()
    }

    fn adam(step: u64, is_coupled: bool) -> Adam {
        let betas = [0.9, 0.999];
        let (learning_rate, epsilon, weight_decay) = (0.01, 1e-8, 0.1);
        Adam { learning_rate, betas, epsilon, weight_decay, is_coupled, scale: 0.5, step }
    }

    fn sgd(step: u64, weight_decay: f64) -> Sgd {
        let (learning_rate, momentum, dampening) = (0.1, 0.9, 0.0);
        let is_nesterov = true;
        let scale = 1.0;
        Sgd { learning_rate, momentum, dampening, is_nesterov, weight_decay, scale, step }
    }

    #[test]
    fn adam_is_its_equation() {
        let (mut w, mut m, mut v) = (noise(100, 1), vec![0.0; 100], vec![0.0; 100]);
        let mut wanted: Vec<[f64; 3]> = w.iter().map(|&w| [f64::from(w), 0.0, 0.0]).collect();
        for step in 1..=5 {
            let g = noise(100, step as u32 * 77);
            assert!(adam(step, false).apply(&mut w, &g, &mut m, &mut v));
            for ([w, m, v], g) in wanted.iter_mut().zip(&g) {
                let g = f64::from(*g) * 0.5;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.999 * *v + 0.001 * g * g;
                let bias = |beta: f64| 1.0 - beta.powf(step as f64);
                *w = *w * (1.0 - 0.01 * 0.1)
                    - 0.01 / bias(0.9) * *m / ((*v / bias(0.999)).sqrt() + 1e-8);
            }
        }
        for (&found, [wanted, ..]) in w.iter().zip(&wanted) {
            assert!((f64::from(found) - wanted).abs() < 1e-6, "{found} {wanted}");
        }
    }

    #[test]
    fn rows_change_a_table_as_the_whole_gradient_does() {
        let shape = [1000, 40];
        let pool = Pool::default();
        let rules: [&dyn Fn(u64) -> Box<dyn Rule>; 4] = [
            &|step| Box::new(adam(step, false)),
            &|step| Box::new(adam(step, true)),
            &|step| Box::new(sgd(step, 0.0)),
            &|step| Box::new(sgd(step, 0.1)),
        ];
        for rule in rules {
            let mut by_rows = Tensor::new(&shape, &noise(40_000, 3));
            let mut whole = by_rows.clone();
            let mut rows_moments = Moments::zeros(&shape, 2);
            let mut whole_moments = Moments::zeros(&shape, 2);
            for step in 1..=4 {
                let indices: Vec<usize> = (0..60).map(|i| (i * i * 7 + 13 * step) % 500).collect();
                let rows = Tensor::new(&[60, 40], &noise(2400, step as u32));
                let rows = Flow::Rows { shape: shape.into(), indices, rows };
                let dense: Flow = rows.clone().into_dense(&pool).into();
                let rows = merged(rows, &pool);
                assert_eq!(square_sum(&rows), square_sum(&dense));
                let rule = rule(step as u64);
                assert!(update(rule.as_ref(), &mut by_rows, &rows, &mut rows_moments));
                assert!(update(rule.as_ref(), &mut whole, &dense, &mut whole_moments));
                assert_eq!(by_rows, whole, "step {step}");
                rows_moments = Moments::of(rows_moments.tensors, &shape);
            }
            assert_eq!(rows_moments.tensors, whole_moments.tensors);
        }
    }

    #[test]
    fn a_weight_that_is_no_longer_finite_is_told() {
        let mut w = noise(50_000, 1);
        let mut g = vec![1.0; 50_000];
        let rule = sgd(1, 0.0);
        assert!(update_dense(&rule, &mut w, &g, [&mut [], &mut []]));
        g[41_234] = f32::NAN;
        assert!(!update_dense(&rule, &mut w, &g, [&mut [], &mut []]));
    }

    #[test]
    fn sums_do_not_depend_on_the_number_of_threads() {
        let flow: Flow = Tensor::new(&[3000, 100], &noise(300_000, 5)).into();
        let sum = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| square_sum(&flow))
        };
        assert_eq!(sum(1), sum(2));
        let plain: f64 = noise(300_000, 5).iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((sum(1) - plain).abs() < 1e-6 * plain);
    }
}
