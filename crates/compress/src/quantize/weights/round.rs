//! Weights rounded to blocks of levels, from what calibration saw of their inputs or without.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;

use attar_graph::{Graph, Model};
use attar_tensor::Tensor;

use super::super::calibrate::{Fold, observe};
use super::super::descent::{refine, refine_scales};
use super::super::gptq;
use super::super::gram::Gram;
use super::super::product::relative_error_of_groups;
use super::super::record::ProductRecord;
use super::super::statistics::ChannelAxis;
use super::grid::{Grid, Levels, beside};
use super::sequence::Sequence;
use super::target::{Layout, Target};
use super::{Rounding, ScaleType, hqq};
use crate::parallel::each_in_order;
use crate::{Context, PassError};

/// How weights are rounded.
#[derive(Clone, Copy)]
pub(crate) struct Method {
    pub(crate) has_zero_points: bool,
    pub(crate) block: Option<usize>,
    pub(crate) rounding: Rounding,
    pub(crate) scales_channels: bool,
    pub(crate) scale_type: ScaleType,
    /// Whether each weight is to make up for what rounding those before it did.
    pub(crate) is_sequential: bool,
}

/// One weight in levels.
pub(super) struct Rounded {
    pub(super) grid: Grid,
    /// [inputs, outputs].
    pub(super) levels: Vec<i8>,
    pub(super) bits: u32,
    pub(super) has_zero_points: bool,
    /// Whether every scale is a number of f16.
    pub(super) has_half_scales: bool,
    rounding: &'static str,
    /// ‖X·(W − Ŵ)‖ / ‖X·W‖ on the calibration data; ‖W − Ŵ‖ / ‖W‖ without.
    error: f64,
}

impl Rounded {
    pub(super) fn records(&self, graph: &Graph, target: &Target) -> Vec<ProductRecord> {
        let record = |&(index, _): &(usize, usize)| ProductRecord {
            node: graph.nodes[index].label().to_string(),
            op_type: graph.nodes[index].op_type.clone(),
            rounding: self.rounding.to_string(),
            input_error: 0.0,
            weight_error: self.error,
            output_error: None,
            kept_float: None,
        };
        target.readers.iter().map(record).collect()
    }
}

/// Bytes of second moments held at a time; where there are more, the data is run over again.
const MOMENTS_BYTES_MAX: usize = 512 << 20;
/// Inputs beyond which second moments are not worth their time and memory.
const INPUTS_MAX: usize = 8192;
/// A hundredth of a mean channel is added to each, against what a sample did not show.
const RIDGE: f64 = 0.01;
/// Rounds of levels for given scales, and scales for given levels.
const ROUNDS: usize = 3;
/// Exponents tried for the factors of channels (Lin et al., "AWQ", 2023).
const EXPONENTS: [f32; 4] = [0.25, 0.5, 0.75, 1.0];
/// Part of the error that may remain for a multiplication to be worth its time.
const REMAINS_MAX: f64 = 0.9;

struct Record {
    gram: Gram,
    is_finite: bool,
}

impl Fold for Record {
    fn fold(&mut self, tensor: &Tensor) -> bool {
        self.is_finite &= tensor.values::<f32>().iter().all(|x| x.is_finite());
        if self.is_finite {
            self.gram.fold(tensor);
        }
        self.is_finite
    }
}

/// XᵀX of a value that products read.
pub(super) struct Moments {
    pub(super) sums: Vec<f32>,
    pub(super) size: usize,
}

impl Moments {
    fn diagonal(&self) -> Vec<f32> {
        (0..self.size).map(|k| self.sums[k * self.size + k]).collect()
    }

    /// Of channels divided by `divisors`.
    fn divided(&self, divisors: &[f32]) -> Self {
        let by = |(index, x): (usize, &f32)| {
            x / divisors[index / self.size] / divisors[index % self.size]
        };
        Self { sums: self.sums.iter().enumerate().map(by).collect(), size: self.size }
    }
}

/// Rounds the weights of a model.
pub(super) struct Rounder<'a> {
    model: &'a Model,
    method: Method,
    context: &'a Context<'a>,
    /// What the channels of values are divided by, whose readers' weights are multiplied.
    pub(super) divisors: BTreeMap<String, (Vec<f32>, Vec<usize>)>,
    pub(super) batch_count: usize,
    /// What the user should know of the data.
    pub(super) remark: Option<String>,
    /// Other constants that are no longer what they were.
    replaced: &'a [(String, Tensor)],
}

impl<'a> Rounder<'a> {
    pub(super) fn new(
        model: &'a Model,
        method: Method,
        context: &'a Context<'a>,
        replaced: &'a [(String, Tensor)],
    ) -> Self {
        let divisors = BTreeMap::new();
        Self { model, method, context, divisors, batch_count: 0, remark: None, replaced }
    }

    /// Every target in levels.
    ///
    /// # Errors
    /// Weights that are not finite, no calibration data where it is needed, or data that does not
    /// fit.
    pub(super) fn all(&mut self, targets: &[Target]) -> Result<Vec<Rounded>, PassError> {
        let mut of_value: BTreeMap<(&str, usize), Vec<usize>> = BTreeMap::new();
        let mut alone = Vec::new();
        for (index, target) in targets.iter().enumerate() {
            if target.tensor.values::<f32>().iter().any(|w| !w.is_finite()) {
                return Err(PassError::WeightNotFinite { tensor: target.name.into() });
            }
            match self.input_of(target) {
                Some(value) => {
                    // Convolutions of one value take rows of their own.
                    let own = if target.is_matrix_product { 0 } else { index + 1 };
                    of_value.entry((value, own)).or_default().push(index);
                }
                None => alone.push(index),
            }
        }
        let mut rounded: BTreeMap<usize, Rounded> = BTreeMap::new();
        let (method, one) = (self.method, NonZeroUsize::MIN);
        let of = |&index: &usize| (index, method.round(&targets[index], None, None, one));
        rounded.extend(each_in_order(&alone, self.context.threads, of));
        let of_value = of_value.into_iter().map(|((value, _), indices)| (value, indices));
        let mut values: Vec<(&str, Vec<usize>)> = of_value.collect();
        // In the order of their readers, so that a part of the model is done at a time.
        let reader = |&index: &usize| targets[index].readers[0].0;
        values.sort_by_key(|(_, indices)| indices.iter().map(reader).min());
        if method.is_in_sequence() && !values.is_empty() {
            self.in_sequence(targets, &values, &mut rounded)?;
            values.clear();
        }
        while !values.is_empty() {
            let mut bytes = 0;
            let fits = |(_, indices): &&(&str, Vec<usize>)| {
                let size = targets[indices[0]].size()[0];
                bytes += size * size * size_of::<f32>();
                bytes <= MOMENTS_BYTES_MAX
            };
            let count = values.iter().take_while(fits).count().max(1);
            let part: Vec<(&str, Vec<usize>)> = values.drain(..count).collect();
            let moments = self.moments(&part)?;
            let found: Vec<(usize, Rounded, Option<Vec<f32>>)> =
                each_in_order(&part, self.context.threads, |(value, indices)| {
                    method.of_value(targets, indices, moments.get(*value))
                })
                .into_iter()
                .flatten()
                .collect();
            for (index, levels, divisors) in found {
                if let Some(divisors) = divisors {
                    let node = targets[index].readers[0].0;
                    let value = self.model.graph.nodes[node].inputs[0].clone();
                    self.divisors.entry(value).or_insert((divisors, Vec::new())).1.push(node);
                }
                rounded.insert(index, levels);
            }
        }
        Ok(rounded.into_values().collect())
    }

    /// Rounds the weights that read `values`, one value after the other.
    fn in_sequence(
        &mut self,
        targets: &[Target],
        values: &[(&str, Vec<usize>)],
        rounded: &mut BTreeMap<usize, Rounded>,
    ) -> Result<(), PassError> {
        let mut sequence = Sequence::new(self.model, self.context)?;
        self.batch_count = sequence.batch_count();
        for (name, tensor) in self.replaced {
            sequence.set(name, tensor.clone())?;
        }
        for (&index, rounded) in &*rounded {
            let target = &targets[index];
            if target.is_own {
                let real = rounded.grid.dequantized(&rounded.levels);
                sequence.set(target.name, target.with(&real))?;
            }
        }
        for (value, indices) in values {
            let own: Vec<&Target> = indices.iter().map(|&index| &targets[index]).collect();
            let found = sequence.round(self.method, value, &own, self.context)?;
            rounded.extend(indices.iter().copied().zip(found));
        }
        self.remark = sequence.remark();
        Ok(())
    }

    /// The value whose second moments a weight is rounded by.
    fn input_of(&self, target: &Target) -> Option<&'a str> {
        let wants = self.method.rounding == Rounding::Gptq || self.method.scales_channels;
        let [(node, _)] = target.readers.as_slice() else { return None };
        let is_kernel = target.layout == Layout::Kernel && self.method.is_in_sequence();
        let is_one = (target.is_matrix_product || is_kernel) && target.size()[0] <= INPUTS_MAX;
        let node = &self.model.graph.nodes[*node];
        let is_plain = node.int_or("transA", 0) == Ok(0);
        (wants && is_one && is_plain && target.is_own).then(|| node.inputs[0].as_str())
    }

    fn moments(
        &mut self,
        part: &[(&str, Vec<usize>)],
    ) -> Result<BTreeMap<String, Moments>, PassError> {
        let record = |(value, _): &(&str, Vec<usize>)| {
            let gram = Gram::new(ChannelAxis::Last);
            ((*value).to_string(), Record { gram, is_finite: true })
        };
        let mut records: BTreeMap<String, Record> = part.iter().map(record).collect();
        self.batch_count = observe(self.model, &mut records, self.context)?;
        let seen = records.into_iter().filter(|(_, record)| record.gram.size > 0);
        let moments = |(value, record): (String, Record)| {
            let size = record.gram.size;
            (value, Moments { size, sums: record.gram.finish() })
        };
        Ok(seen.map(moments).collect())
    }
}

impl Method {
    /// Whether weights are rounded one after the other.
    fn is_in_sequence(self) -> bool {
        self.is_sequential && self.rounding == Rounding::Gptq && !self.scales_channels
    }

    /// The weights that read one value.
    fn of_value(
        self,
        targets: &[Target],
        indices: &[usize],
        moments: Option<&Moments>,
    ) -> Vec<(usize, Rounded, Option<Vec<f32>>)> {
        let fits = |moments: &&Moments| {
            indices.iter().all(|&index| targets[index].size()[0] == moments.size)
        };
        let moments = moments.filter(fits);
        let all = |divisors: Option<&[f32]>| -> Vec<Rounded> {
            let divided = moments.zip(divisors).map(|(moments, by)| moments.divided(by));
            let moments = divided.as_ref().or(moments);
            let of = |&index: &usize| {
                let target = &targets[index];
                let wanted = divisors.map(|divisors| multiplied(target, divisors));
                self.round(target, moments.map(std::slice::from_ref), wanted, NonZeroUsize::MIN)
            };
            indices.iter().map(of).collect()
        };
        let plain = all(None);
        let chosen = match moments.filter(|_| self.scales_channels) {
            Some(moments) => with_divisors(&plain, moments, &all),
            None => None,
        };
        let (rounded, divisors) = chosen.unwrap_or((plain, None));
        let of = |(&index, rounded)| (index, rounded, divisors.clone());
        indices.iter().zip(rounded).map(of).collect()
    }

    /// Rounds what `wanted` [inputs, outputs] gives, or the weight itself, by second moments of the
    /// inputs or of those of each group.
    pub(super) fn round(
        self,
        target: &Target,
        moments: Option<&[Moments]>,
        wanted: Option<Vec<f32>>,
        threads: NonZeroUsize,
    ) -> Rounded {
        let levels = Levels { bits: target.bits, has_zero_points: self.has_zero_points };
        let [inputs, outputs] = target.size();
        let block = target.block(self.block);
        let w = wanted.unwrap_or_else(|| target.matrix());
        // Outputs do not depend on each other.
        let groups = moments.map_or(1, <[Moments]>::len).max(1);
        let of_group = outputs / groups;
        let width = of_group.div_ceil(of_group.div_ceil(OUTPUTS_AT_ONCE).max(1)).max(1);
        let ranges: Vec<Range<usize>> = (0..groups * of_group)
            .step_by(of_group.max(1))
            .flat_map(|first| {
                let end = first + of_group;
                (first..end).step_by(width).map(move |from| from..(from + width).min(end))
            })
            .collect();
        let own = |part: &Range<usize>| moments.and_then(|m| m.get(part.start / of_group.max(1)));
        let parts = each_in_order(&ranges, threads, |part| {
            let w = columns(&w, outputs, part);
            self.part(&w, part.len(), block, levels, own(part))
        });
        let mut grid = Grid::beside(parts.iter().map(|(grid, _)| grid));
        let by_moments: Option<Vec<&[i8]>> =
            parts.iter().map(|(_, levels)| levels.as_deref()).collect();
        let by_moments = by_moments.map(|parts| beside(&parts, inputs));
        let name = match (&by_moments, self.rounding, moments) {
            (Some(_), ..) => "gptq",
            (None, Rounding::Nearest, _) => "nearest",
            (None, Rounding::Hqq, _) => "hqq",
            (None, ..) => "mse",
        };
        let wants_half = self.scale_type == ScaleType::F16 && block < inputs;
        let has_half_scales = wants_half && grid.halve_scales();
        let found = by_moments.unwrap_or_else(|| grid.nearest(&w));
        let back = grid.dequantized(&found);
        let e: Vec<f32> = w.iter().zip(&back).map(|(w, v)| w - v).collect();
        let error = match moments {
            Some(moments) => {
                let groups = moments.iter().enumerate().map(|(group, moments)| {
                    let part = group * of_group..(group + 1) * of_group;
                    let [e, w] = [&e, &w].map(|values| columns(values, outputs, &part));
                    (moments.sums.as_slice(), e, w)
                });
                relative_error_of_groups(groups, of_group)
            }
            None => plain_error(&e, &w),
        };
        Rounded {
            grid,
            levels: found,
            bits: levels.bits,
            has_zero_points: levels.has_zero_points,
            has_half_scales,
            rounding: name,
            error,
        }
    }

    /// The grid of `w` [inputs, outputs], and the levels where second moments tell them.
    fn part(
        self,
        w: &[f32],
        outputs: usize,
        block: usize,
        levels: Levels,
        moments: Option<&Moments>,
    ) -> (Grid, Option<Vec<i8>>) {
        let mut grid = match (self.rounding, moments) {
            (Rounding::Nearest, _) => Grid::of_ranges(w, outputs, block, levels),
            (Rounding::Hqq, _) => hqq::grid(w, outputs, block, levels),
            (Rounding::Auto | Rounding::Gptq, Some(moments)) => {
                Grid::of_least_error(w, outputs, block, levels, &moments.diagonal())
            }
            _ => {
                let alike = vec![1.0; w.len() / outputs.max(1)];
                let mut grid = Grid::of_least_error(w, outputs, block, levels, &alike);
                (0..ROUNDS).for_each(|_| grid.fit_scales(w));
                grid
            }
        };
        let rule = moments.filter(|_| self.rounding == Rounding::Gptq);
        let found = rule.and_then(|moments| by_moments(w, &mut grid, &moments.sums));
        (grid, found)
    }
}

/// Outputs of a weight that are rounded together.
const OUTPUTS_AT_ONCE: usize = 512;

/// Columns of `w` [rows, width].
pub(super) fn columns(w: &[f32], width: usize, part: &Range<usize>) -> Vec<f32> {
    w.chunks_exact(width.max(1)).flat_map(|row| &row[part.clone()]).copied().collect()
}

/// The weights of a target, those of each input multiplied.
fn multiplied(target: &Target, factors: &[f32]) -> Vec<f32> {
    let mut w = target.matrix();
    for (row, factor) in w.chunks_exact_mut(target.size()[1].max(1)).zip(factors) {
        row.iter_mut().for_each(|w| *w *= factor);
    }
    w
}

/// Levels of `w` by second moments `sums` [inputs, inputs], in turn with the scales of `grid`; `None`
/// where the moments are not positive definite.
pub(crate) fn by_moments(w: &[f32], grid: &mut Grid, sums: &[f32]) -> Option<Vec<i8>> {
    let inputs = w.len() / grid.outputs.max(1);
    let mean = sums.iter().step_by(inputs + 1).map(|&x| f64::from(x)).sum::<f64>();
    let ridge = (RIDGE * mean / inputs.max(1) as f64) as f32;
    let ridge = if ridge > 0.0 { ridge } else { 1.0 };
    let mut levels = gptq::round(w, grid, sums.to_vec(), &vec![ridge; inputs])?;
    let mut h = sums.to_vec();
    h.iter_mut().step_by(inputs + 1).for_each(|square| *square += ridge);
    for _ in 0..ROUNDS {
        levels = refine(w, grid, &h, levels);
        refine_scales(w, grid, &h, &levels);
    }
    Some(levels)
}

/// The best of several divisors, the root mean squares of channels to some power, if any gains.
fn with_divisors(
    plain: &[Rounded],
    moments: &Moments,
    all: &dyn Fn(Option<&[f32]>) -> Vec<Rounded>,
) -> Option<(Vec<Rounded>, Option<Vec<f32>>)> {
    let cost = |rounded: &[Rounded]| rounded.iter().map(|r| r.error * r.error).sum::<f64>();
    let diagonal = moments.diagonal();
    let used: Vec<f32> = diagonal.iter().copied().filter(|&x| x > 0.0).collect();
    let mean = used.iter().map(|x| x.ln()).sum::<f32>() / used.len().max(1) as f32;
    let factor = |exponent: f32| {
        let of = |&x: &f32| if x > 0.0 { (0.5 * exponent * (x.ln() - mean)).exp() } else { 1.0 };
        diagonal.iter().map(of).collect::<Vec<f32>>()
    };
    let tried = EXPONENTS.map(|exponent| {
        // A channel that is large has its weights multiplied: rounding them loses less.
        let divisors = factor(exponent);
        (all(Some(&divisors)), Some(divisors))
    });
    let best = tried.into_iter().min_by(|a, b| cost(&a.0).total_cmp(&cost(&b.0)))?;
    (cost(&best.0) < REMAINS_MAX * REMAINS_MAX * cost(plain)).then_some(best)
}

fn plain_error(e: &[f32], w: &[f32]) -> f64 {
    let squares = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    let ratio = (squares(e) / squares(w)).sqrt();
    if ratio.is_finite() { ratio } else { 0.0 }
}
