//! Weights rounded in the order of the graph, each to make up for what rounding those before it did.
//!
//! With x̂ the inputs of a product in the model whose earlier weights are in levels, and x in the
//! original, what is to be near is x̂·Ŵ to x·W (Li et al., "GPTAQ", 2025, arXiv:2504.02692). Where the
//! product is added to a value r that is known before it, a residual stream, it is the sums that are
//! to be near: x̂·Ŵ to x·W + r − r̂ (as in the refit of pruned products). The weights that would do so
//! best, W + (X̂ᵀX̂ + λ)⁻¹·X̂ᵀ((X − X̂)·W + R − R̂), are then rounded by the moments of x̂.

use attar_graph::{Links, Model};
use attar_ops::logits::weighted_rows;
use attar_tensor::{DType, Tensor};

use super::super::gptq::cholesky;
use super::round::{Method, Moments, Rounded};
use super::target::Target;
use crate::staged::Staged;
use crate::{Context, PassError};

/// What is held of the original and of the rounded model between two products, of all examples.
const BYTES_MAX: usize = 1 << 30;
/// λ, relative to a mean channel: against what a sample did not show.
const RIDGE: f32 = 0.1;
/// Rows for each input below which weights are not moved: a sample would be learnt by heart.
const ROWS_PER_INPUT_MIN: usize = 4;

/// Two runs of one model side by side.
pub(super) struct Sequence<'a> {
    original: Staged<'a>,
    rounded: Staged<'a>,
    links: Links<'a>,
    model: &'a Model,
}

/// What the examples show of the products that read one value.
struct Sums {
    /// Inputs of each.
    size: usize,
    rows: usize,
    /// Of each target, as [inputs, outputs].
    weights: Vec<Vec<f32>>,
    /// X̂ᵀX̂.
    moments: Vec<f32>,
    /// X̂ᵀ((X − X̂)·W + R − R̂), of each target.
    shifts: Vec<Vec<f32>>,
    /// Rows of X̂, of X − X̂ and, for each target, of R − R̂ that are still to be multiplied.
    waiting: Vec<f32>,
    waiting_off: Vec<f32>,
    waiting_residuals: Vec<Vec<f32>>,
}

impl<'a> Sequence<'a> {
    pub(super) fn new(model: &'a Model, context: &'a Context<'a>) -> Result<Self, PassError> {
        let original = Staged::new(model, context, BYTES_MAX / 4)?;
        if original.count() == 0 {
            return Err(PassError::EmptyCalibration);
        }
        let rounded = Staged::new(model, context, BYTES_MAX / 4)?;
        Ok(Self { original, rounded, links: Links::new(&model.graph), model })
    }

    /// Batches of the calibration data.
    pub(super) fn batch_count(&self) -> usize {
        self.original.batch_count
    }

    /// What to say of examples that were left out, if there were.
    pub(super) fn remark(&self) -> Option<String> {
        let (used, given) = (self.original.count(), self.original.given_count);
        let megabytes = BYTES_MAX >> 20;
        (used < given).then(|| {
            format!(
                "later weights are rounded from the first {used} of {given} groups of examples: the                  values of more do not fit {megabytes} MB"
            )
        })
    }

    /// Tells the rounded model what a constant is now.
    pub(super) fn set(&mut self, name: &str, tensor: Tensor) -> Result<(), PassError> {
        self.rounded.set([(name.to_string(), tensor)])
    }

    /// Rounds the weights that read `value`, and puts them into the rounded model.
    pub(super) fn round(
        &mut self,
        method: Method,
        value: &str,
        targets: &[&Target],
        context: &Context,
    ) -> Result<Vec<Rounded>, PassError> {
        let reader = targets.iter().map(|target| target.readers[0].0).min().unwrap_or(0);
        self.original.advance(reader)?;
        self.rounded.advance(reader)?;
        self.fit_memory();
        let Some(sums) = self.sums(value, targets)? else {
            let round = |target: &&Target| method.round(target, None, None, context.threads);
            return Ok(targets.iter().map(round).collect());
        };
        let size = targets[0].size()[0];
        let factor = (sums.rows >= ROWS_PER_INPUT_MIN * size).then(|| factor(&sums.moments, size));
        let factor = factor.flatten();
        let moments = Moments { sums: sums.moments, size };
        let round = |(target, shift): (&&Target, &Vec<f32>)| {
            let wanted = factor.as_ref().map(|factor| {
                let moved = solve(factor, shift, size);
                target.matrix().iter().zip(moved).map(|(w, moved)| w + moved).collect()
            });
            method.round(target, Some(&moments), wanted, context.threads)
        };
        let rounded: Vec<Rounded> = targets.iter().zip(&sums.shifts).map(round).collect();
        let made = targets.iter().zip(&rounded).map(|(target, rounded)| {
            let real = rounded.grid.dequantized(&rounded.levels);
            (target.name.to_string(), target.with(&real))
        });
        self.rounded.set(made.collect::<Vec<_>>())?;
        Ok(rounded)
    }

    /// Goes on with fewer examples where more do not fit.
    fn fit_memory(&mut self) {
        let mut count = self.original.count();
        while count > 1 && self.original.bytes() + self.rounded.bytes() > BYTES_MAX {
            count -= count.div_ceil(16);
            self.original.truncate(count);
            self.rounded.truncate(count);
        }
    }

    /// The value that what a product gives is added to, where that is known before it: past additions
    /// of constants.
    fn residual(&self, target: &Target) -> Option<&'a str> {
        let [(node, _)] = target.readers.as_slice() else { return None };
        let mut value = self.model.graph.nodes[*node].outputs[0].as_str();
        loop {
            let (_, reader) = self.links.only_use(value)?;
            let other = reader.inputs.iter().map(String::as_str).find(|input| *input != value)?;
            if !reader.is("Add") || self.model.graph.is_output(value) {
                return None;
            }
            if self.links.constant(other).is_none() {
                return Some(other);
            }
            value = &reader.outputs[0];
        }
    }

    /// # Errors
    /// Values that are not finite.
    fn sums(&self, value: &str, targets: &[&Target]) -> Result<Option<Sums>, PassError> {
        let size = targets[0].size()[0];
        let residuals: Vec<Option<&str>> =
            targets.iter().map(|target| self.residual(target)).collect();
        let mut sums = Sums::new(size, targets);
        for example in 0..self.original.count() {
            let pair = |name: &str| {
                let both =
                    self.original.value(example, name).zip(self.rounded.value(example, name));
                both.filter(|(a, b)| a.shape() == b.shape() && a.dtype() == DType::F32)
            };
            let Some((x, now)) = pair(value) else { return Ok(None) };
            if x.shape().last() != Some(&size) {
                return Ok(None);
            }
            let (x, now) = (x.values::<f32>(), now.values::<f32>());
            if !x.iter().chain(now.iter()).all(|x| x.is_finite()) {
                return Err(PassError::NotFinite {
                    tensor: value.into(),
                    batch: self.original.batch(example),
                });
            }
            let off = x.iter().zip(now.iter()).map(|(x, now)| x - now);
            sums.waiting_off.extend(off);
            sums.waiting.extend_from_slice(&now);
            let rows = x.len() / size;
            for (index, residual) in residuals.iter().enumerate() {
                let count = rows * sums.weights[index].len() / size;
                let waiting = &mut sums.waiting_residuals[index];
                match residual.and_then(pair).filter(|(r, _)| r.element_count() == count) {
                    Some((r, now)) => {
                        let (r, now) = (r.values::<f32>(), now.values::<f32>());
                        waiting.extend(r.iter().zip(now.iter()).map(|(r, now)| r - now));
                    }
                    None => waiting.resize(waiting.len() + count, 0.0),
                }
            }
            if sums.waiting.len() >= ROWS_AT_ONCE * size {
                sums.flush();
            }
        }
        sums.flush();
        Ok(Some(sums))
    }
}

/// Rows gathered before they are multiplied.
const ROWS_AT_ONCE: usize = 2048;

impl Sums {
    fn new(size: usize, targets: &[&Target]) -> Self {
        let weights: Vec<Vec<f32>> = targets.iter().map(|target| target.matrix()).collect();
        Self {
            size,
            rows: 0,
            moments: vec![0.0; size * size],
            shifts: weights.iter().map(|w| vec![0.0; w.len()]).collect(),
            waiting: Vec::new(),
            waiting_off: Vec::new(),
            waiting_residuals: vec![Vec::new(); weights.len()],
            weights,
        }
    }

    fn flush(&mut self) {
        let size = self.size;
        let rows = self.waiting.len() / size.max(1);
        if rows == 0 {
            return;
        }
        self.rows += rows;
        let now = std::mem::take(&mut self.waiting);
        let off = std::mem::take(&mut self.waiting_off);
        let add = |sum: &mut [f32], b: &[f32]| {
            let mut part = vec![0.0_f32; sum.len()];
            weighted_rows(&mut part, &now, b, [rows, size], true);
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        };
        add(&mut self.moments, &now);
        let parts = self.weights.iter().zip(&mut self.waiting_residuals).zip(&mut self.shifts);
        for ((w, waiting), shift) in parts {
            let mut missing = vec![0.0_f32; waiting.len()];
            weighted_rows(&mut missing, &off, w, [rows, size], false);
            missing.iter_mut().zip(&*waiting).for_each(|(missing, sum)| *missing += sum);
            waiting.clear();
            add(shift, &missing);
        }
    }
}

/// L with L·Lᵀ = H + λ in the lower triangle; `None` where nothing was seen.
fn factor(moments: &[f32], size: usize) -> Option<Vec<f32>> {
    let mut h = moments.to_vec();
    let mean = h.iter().step_by(size + 1).sum::<f32>() / size as f32;
    h.iter_mut().step_by(size + 1).for_each(|square| *square += RIDGE * mean);
    cholesky(h, size)
}

/// Rows or columns of a triangle solved before they are handed on by a product.
const BLOCK: usize = 64;

/// (L·Lᵀ)⁻¹·b for `b` [size, n].
fn solve(l: &[f32], b: &[f32], size: usize) -> Vec<f32> {
    let n = b.len() / size.max(1);
    let mut x = b.to_vec();
    let starts: Vec<usize> = (0..size).step_by(BLOCK).collect();
    let minus = |to: &mut [f32], a: &[f32], b: &[f32], shape: [usize; 2], transposed: bool| {
        let mut part = vec![0.0_f32; to.len()];
        weighted_rows(&mut part, a, b, shape, transposed);
        to.iter_mut().zip(part).for_each(|(to, part)| *to -= part);
    };
    // L·y = b, from the first row on.
    for &first in &starts {
        let end = (first + BLOCK).min(size);
        let (before, rest) = x.split_at_mut(first * n);
        let own = &mut rest[..(end - first) * n];
        let left: Vec<f32> = (first..end)
            .flat_map(|row| l[row * size..row * size + first].iter().copied())
            .collect();
        if first > 0 {
            minus(own, &left, before, [end - first, first], false);
        }
        for row in first..end {
            let (done, rest) = own.split_at_mut((row - first) * n);
            let line = &l[row * size..];
            for (k, known) in done.chunks_exact(n).enumerate() {
                let factor = line[first + k];
                rest[..n].iter_mut().zip(known).for_each(|(x, known)| *x -= factor * known);
            }
            rest[..n].iter_mut().for_each(|x| *x /= line[row]);
        }
    }
    // Lᵀ·x = y, from the last row on.
    for &first in starts.iter().rev() {
        let end = (first + BLOCK).min(size);
        let (before, after) = x.split_at_mut(end * n);
        let own = &mut before[first * n..];
        let below: Vec<f32> = (end..size)
            .flat_map(|row| l[row * size + first..row * size + end].iter().copied())
            .collect();
        if end < size {
            minus(own, &below, after, [size - end, end - first], true);
        }
        for row in (first..end).rev() {
            let (rest, done) = own.split_at_mut((row - first + 1) * n);
            let x = &mut rest[(row - first) * n..];
            for (k, known) in done.chunks_exact(n).enumerate() {
                let factor = l[(row + 1 + k) * size + row];
                x.iter_mut().zip(known).for_each(|(x, known)| *x -= factor * known);
            }
            x.iter_mut().for_each(|x| *x /= l[row * size + row]);
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_solved_multiplies_back() {
        let (size, n) = (150, 3);
        let mut state = 5_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        let rows: Vec<f32> = (0..400 * size).map(|_| next()).collect();
        let mut h = vec![0.0_f32; size * size];
        weighted_rows(&mut h, &rows, &rows, [400, size], true);
        let expected: Vec<f32> = (0..size * n).map(|_| next()).collect();
        let mut b = vec![0.0_f32; size * n];
        weighted_rows(&mut b, &h, &expected, [size, size], false);
        let found = solve(&cholesky(h, size).unwrap(), &b, size);
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-3, "{a} {b}");
        }
    }
}
