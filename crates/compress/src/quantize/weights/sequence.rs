//! Weights rounded in the order of the graph, each to make up for what rounding those before it did.
//!
//! With x̂ the inputs of a product in the model whose earlier weights are in levels, and x in the
//! original, what is to be near is x̂·Ŵ to x·W (Li et al., "GPTAQ", 2025, arXiv:2504.02692). Where the
//! product is added to a value r that is known before it, a residual stream, it is the sums that are
//! to be near: x̂·Ŵ to x·W + r − r̂ (as in the refit of pruned products). The weights that would do so
//! best, W + (X̂ᵀX̂ + λ)⁻¹·X̂ᵀ((X − X̂)·W + R − R̂), are then rounded by the moments of x̂.

use std::ops::Range;

use attar_graph::{Links, Model};
use attar_ops::logits::weighted_rows;
use attar_tensor::{DType, Tensor};

use super::super::gptq::cholesky;
use super::grid::beside;
use super::round::{Method, Moments, Rounded, columns};
use super::target::Target;
use crate::layout::DataAxis;
use crate::moments::{Product, Rows, products};
use crate::parallel::each_in_order;
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

/// What the examples show of the products that read one value; of each group of a convolution by
/// itself.
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
                "later weights are rounded from the first {used} of {given} groups of examples: the \
                 values of more do not fit {megabytes} MB"
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
        let (moments, shifts): (Vec<Moments>, Vec<Option<Vec<Vec<f32>>>>) =
            each_in_order(&sums, context.threads, Sums::solved).into_iter().unzip();
        drop(sums);
        let round = |(index, target): (usize, &&Target)| {
            let parts: Option<Vec<&[f32]>> =
                shifts.iter().map(|of_group| Some(of_group.as_ref()?[index].as_slice())).collect();
            let wanted = parts.map(|parts| {
                let moved = beside(&parts, target.size()[0]);
                target.matrix().iter().zip(moved).map(|(w, moved)| w + moved).collect()
            });
            method.round(target, Some(&moments), wanted, context.threads)
        };
        let rounded: Vec<Rounded> = targets.iter().enumerate().map(round).collect();
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

    /// By group of a convolution, which is read alone; `None` where rows cannot be taken.
    ///
    /// # Errors
    /// Values that are not finite.
    fn sums(&self, value: &str, targets: &[&Target]) -> Result<Option<Vec<Sums>>, PassError> {
        let product = if targets[0].is_matrix_product {
            None
        } else {
            let product = products(self.model, &[targets[0].name.to_string()]).pop();
            let Some(product) = product else { return Ok(None) };
            Some(product)
        };
        let reading =
            Reading { product, width: targets[0].size()[0], rank: targets[0].tensor.rank() };
        let residuals: Vec<Option<&str>> =
            targets.iter().map(|target| self.residual(target)).collect();
        let mut sums: Vec<Sums> =
            (0..reading.groups()).map(|group| Sums::new(&reading, group, targets)).collect();
        for example in 0..self.original.count() {
            let pair = |name: &str| {
                let both =
                    self.original.value(example, name).zip(self.rounded.value(example, name));
                both.filter(|(a, b)| a.shape() == b.shape() && a.dtype() == DType::F32)
            };
            let Some((x, now)) = pair(value).filter(|(x, _)| reading.fits(x)) else {
                return Ok(None);
            };
            let is_finite = |tensor: &Tensor| tensor.values::<f32>().iter().all(|x| x.is_finite());
            if !is_finite(x) || !is_finite(now) {
                return Err(PassError::NotFinite {
                    tensor: value.into(),
                    batch: self.original.batch(example),
                });
            }
            let rows = reading.rows(x).into_iter().zip(reading.rows(now));
            let mut count = 0;
            for (sums, (x, now)) in sums.iter_mut().zip(rows) {
                sums.waiting_off.extend(x.iter().zip(&now).map(|(x, now)| x - now));
                sums.waiting.extend_from_slice(&now);
                count = now.len() / reading.width.max(1);
            }
            for (index, (residual, target)) in residuals.iter().zip(targets).enumerate() {
                let outputs = target.size()[1];
                let off = residual.and_then(pair).and_then(|(r, now)| {
                    let (r, now) = (reading.results(r)?, reading.results(now)?);
                    Some(r.iter().zip(&now).map(|(r, now)| r - now).collect::<Vec<f32>>())
                });
                let off = off.filter(|off| off.len() == count * outputs);
                for (group, sums) in sums.iter_mut().enumerate() {
                    let part = reading.outputs(group, outputs);
                    let waiting = &mut sums.waiting_residuals[index];
                    match &off {
                        Some(off) if part.len() == outputs => waiting.extend_from_slice(off),
                        Some(off) => waiting.extend(columns(off, outputs, &part)),
                        None => waiting.resize(waiting.len() + count * part.len(), 0.0),
                    }
                }
            }
            if sums.iter().map(|sums| sums.waiting.len()).sum::<usize>()
                >= ROWS_AT_ONCE * reading.width.max(WIDTH_MIN)
            {
                sums.iter_mut().for_each(Sums::flush);
            }
        }
        sums.iter_mut().for_each(Sums::flush);
        Ok(Some(sums))
    }
}

/// Rows gathered before they are multiplied.
const ROWS_AT_ONCE: usize = 2048;
/// As wide as rows of all groups together count at least.
const WIDTH_MIN: usize = 2048;

/// How rows of a value meet weights.
struct Reading {
    /// A convolution; rows on the last axis otherwise.
    product: Option<Product>,
    /// Inputs of a row.
    width: usize,
    /// Axes of the weight.
    rank: usize,
}

impl Reading {
    fn groups(&self) -> usize {
        self.product.as_ref().map_or(1, |product| product.matrices.len())
    }

    /// Which of the outputs are of a group.
    fn outputs(&self, group: usize, outputs: usize) -> Range<usize> {
        let each = outputs / self.groups().max(1);
        group * each..(group + 1) * each
    }

    fn fits(&self, x: &Tensor) -> bool {
        match &self.product {
            None => x.shape().last() == Some(&self.width),
            Some(product) => {
                let channels = product.matrices.first().map_or(0, |matrix| matrix.run);
                x.rank() == self.rank && x.shape()[1] == channels * self.groups()
            }
        }
    }

    /// The rows of each group, their inputs in the order of the weight's.
    fn rows(&self, x: &Tensor) -> Vec<Vec<f32>> {
        let Some(product) = &self.product else { return vec![x.values::<f32>().into_owned()] };
        let mut rows = vec![Vec::new(); self.groups()];
        let places = &product.matrices[0].inputs;
        product.rows.for_each(x, &mut |group, row| {
            let rows: &mut Vec<f32> = &mut rows[group];
            let first = rows.len();
            rows.resize(first + self.width, 0.0);
            places.iter().zip(row).for_each(|(&place, &x)| rows[first + place] = x);
        });
        rows
    }

    /// The results of products at the places of their rows: [rows, outputs].
    fn results(&self, y: &Tensor) -> Option<Vec<f32>> {
        if self.product.is_none() {
            return Some(y.values::<f32>().into_owned());
        }
        let mut rows = Vec::new();
        Rows::Channels(DataAxis::Second).for_each(y, &mut |_, row| rows.extend_from_slice(row));
        (y.rank() == self.rank).then_some(rows)
    }
}

impl Sums {
    fn new(reading: &Reading, group: usize, targets: &[&Target]) -> Self {
        let size = reading.width;
        let weight = |target: &&Target| {
            let outputs = target.size()[1];
            columns(&target.matrix(), outputs, &reading.outputs(group, outputs))
        };
        let weights: Vec<Vec<f32>> = targets.iter().map(weight).collect();
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

    /// The second moments, and by how much the weights of each target are to move, where there are
    /// rows enough to say so.
    fn solved(&self) -> (Moments, Option<Vec<Vec<f32>>>) {
        let size = self.size;
        let factor = (self.rows >= ROWS_PER_INPUT_MIN * size).then(|| factor(&self.moments, size));
        let moved = factor
            .flatten()
            .map(|factor| self.shifts.iter().map(|shift| solve(&factor, shift, size)).collect());
        (Moments { sums: self.moments.clone(), size }, moved)
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
