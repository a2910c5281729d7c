//! Mixed precision: each weight gets the bits with which, for the bytes that all may have, the model's
//! outputs lose least.
//!
//! What each product loses at each number of bits is predicted from one pass over the data; how much
//! of that reaches the outputs, where that weight alone has the fewest bits, from gradients, or measured
//! where none flow. The squared errors add up, so that the cheapest steps for their bytes are taken, on
//! the lower convex hull of each curve. What is rounded first, tables before all, is made up for by what
//! comes after it.

use std::collections::BTreeMap;

use attar_graph::{Links, Model, Plan};
use attar_tensor::Tensor;
use serde::Deserialize;

use super::embedding::{BlockForm, Lookup, lookups, table_moments};
use super::nodes::Builder;
use super::output_error::output_errors;
use super::record::QuantizationRecord;
use super::weights::{self, Block, Form, HALF_MIN, Method, Rounding, ScaleType, Target, targets};
use crate::half;
use crate::reference::Reference;
use crate::sensitivity::{
    BitsOptions, Format, Level, Measured, Predicted, bits_sensitivity, hull, predicted_errors,
    reach_of_bits,
};
use crate::{Context, Estimate, Fraction, OptionEntry, Pass, PassError};

/// Bits for each weight and table, within a budget of bytes or of error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MixedQuantize {
    #[serde(default)]
    size_ratio: Option<Fraction>,
    #[serde(default)]
    error_max: Option<f64>,
    #[serde(default = "all_bits")]
    bits: Vec<Bits>,
    #[serde(default)]
    block: Blocks,
    #[serde(default)]
    form: Form,
}

/// Inputs that share a scale: of several, each weight gets those that lose least for their bytes.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Blocks {
    One(Block),
    Several(Vec<Block>),
}

impl Default for Blocks {
    fn default() -> Self {
        Self::One(Block::default())
    }
}

impl Blocks {
    fn all(&self) -> &[Block] {
        match self {
            Self::One(block) => std::slice::from_ref(block),
            Self::Several(blocks) => blocks,
        }
    }
}

/// Bits that a weight can get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "i64")]
struct Bits(u32);

impl TryFrom<i64> for Bits {
    type Error = String;

    fn try_from(bits: i64) -> Result<Self, String> {
        match bits {
            2 | 4 | 8 | 16 | 32 => Ok(Self(bits as u32)),
            _ => Err(format!("bits holds {bits}, expected 2, 4, 8, 16 or 32")),
        }
    }
}

fn all_bits() -> Vec<Bits> {
    [4, 8, 16].map(Bits).to_vec()
}

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry {
        key: "size_ratio",
        default: "0.25",
        help: "bytes of all constants afterwards, of those before; a quarter unless `error_max` is given",
    },
    OptionEntry {
        key: "error_max",
        default: "0.1",
        help: "in the place of a size: relative error of the outputs, as it is predicted, that is not \
               passed; no bound unless it is given",
    },
    OptionEntry {
        key: "bits",
        default: "[4, 8, 16]",
        help: "what a weight can get: of 2, 4, 8, 16 (f16) and 32",
    },
    OptionEntry {
        key: "block",
        default: "64",
        help: "inputs that share a scale, as in quantize.weights; of several, [32, 64, 128], each weight \
               gets those with which it loses least for its bytes",
    },
    OptionEntry { key: "form", default: "\"qdq\"", help: "as in quantize.weights" },
];

/// What has a weight's place on its curve.
struct Candidate {
    name: String,
    /// By falling bytes: the format, bytes, and the squared error of the outputs.
    points: Vec<(Format, f64, f64)>,
    /// Index of what it has.
    chosen: usize,
}

/// By weight, bits with the relative error of the outputs where it alone has so few, in the largest
/// blocks.
type Reach = BTreeMap<String, Vec<(u32, f64)>>;

impl MixedQuantize {
    /// 0 for all inputs of an output.
    fn blocks(&self) -> Vec<usize> {
        let mut blocks: Vec<usize> =
            self.block.all().iter().map(|block| block.0.unwrap_or(0)).collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }

    fn has(&self, bits: u32) -> bool {
        self.bits.contains(&Bits(bits))
    }

    /// Every weight and table with what each format costs.
    fn candidates(&self, model: &Model, context: &Context) -> Result<Vec<Candidate>, PassError> {
        let mut bits: Vec<u32> = self.bits.iter().map(|bits| bits.0).filter(|b| *b != 32).collect();
        bits.sort_unstable_by(|a, b| b.cmp(a));
        bits.dedup();
        let Some(&fewest) = bits.last() else { return Ok(Vec::new()) };
        let blocks = self.blocks();
        let block = blocks.iter().copied().max().unwrap_or(0);
        let options = BitsOptions { bits: bits.clone(), measured: Vec::new(), block, seed: 0 };
        let reach = match reach_of_bits(model, context, &options) {
            // No gradient flows through some operator of it.
            Err(PassError::Train(_) | PassError::NotFinite { .. }) => {
                let measured = if fewest == 2 && self.has(4) { vec![4, 2] } else { vec![fewest] };
                measured_reach(model, context, &BitsOptions { measured, ..options })?
            }
            reach => reach?.into_iter().map(|(name, reach)| (name, vec![reach])).collect(),
        };
        let all = predicted_errors(model, context, &bits, &blocks)?;
        Ok(all.iter().map(|one| self.candidate(one, block, reach.get(&one.name))).collect())
    }

    /// `reach` is of blocks of `block`.
    fn candidate(
        &self,
        predicted: &Predicted,
        block: usize,
        reach: Option<&Vec<(u32, f64)>>,
    ) -> Candidate {
        let reach = reach.map_or(&[][..], Vec::as_slice);
        // How much of the error of a product reaches the outputs, as it was found for these bits, or
        // for the fewest.
        let share = |bits: u32| {
            let same = reach.iter().find(|(known, _)| *known == bits);
            let &(bits, reached) = same.or(reach.last())?;
            let of_bits = predicted.errors.iter().filter(|((own, _), _)| *own == bits);
            // Blocks of its own, where a weight has not as many inputs.
            let usual = if predicted.is_table && bits == 8 { 0 } else { block };
            let (_, error) = of_bits.max_by_key(|((_, own), _)| match own {
                own if *own == usual => usize::MAX,
                0 => usize::MAX - 1,
                own => *own,
            })?;
            (*error > 0.0).then(|| reached / error)
        };
        let count = predicted.element_count as f64;
        let mut points: Vec<(Format, f64, f64)> = Vec::new();
        if self.has(32) {
            points.push(((32, 0), 4.0 * count, 0.0));
        }
        let left = if predicted.is_table { TABLE_LEFT } else { WEIGHT_LEFT };
        for &(format, error) in &predicted.errors {
            let error = left * share(format.0).unwrap_or(1.0) * error;
            points.push((format, bytes_of(predicted, format), error.powi(2)));
        }
        points.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.2.total_cmp(&b.2)));
        // On the hull alone: bytes saved against error.
        let first = points.first().map_or(0.0, |point| point.1);
        let line: Vec<(f64, f64)> =
            points.iter().map(|(_, bytes, error)| (first - bytes, *error)).collect();
        let on_hull = hull(&line);
        points.retain(|(_, bytes, error)| on_hull.contains(&(first - bytes, *error)));
        Candidate { name: predicted.name.clone(), points, chosen: 0 }
    }

    /// Takes the steps that cost least for the bytes that they save, until the budget is met.
    fn choose(&self, candidates: &mut [Candidate], fixed_bytes: f64, bytes_before: f64) -> bool {
        let bytes_max = match (self.size_ratio, self.error_max) {
            (Some(ratio), _) => ratio.get() * bytes_before,
            (None, Some(_)) => 0.0,
            (None, None) => 0.25 * bytes_before,
        };
        let error_max = self.error_max.map_or(f64::INFINITY, |error| error * error);
        loop {
            let bytes: f64 =
                candidates.iter().map(|c| c.points[c.chosen].1).sum::<f64>() + fixed_bytes;
            let error: f64 = candidates.iter().map(|c| c.points[c.chosen].2).sum();
            if bytes <= bytes_max {
                give_back(candidates, bytes_max - bytes);
                return true;
            }
            let price = |c: &Candidate| {
                let (now, next) = (c.points[c.chosen], c.points.get(c.chosen + 1)?);
                let cost = next.2 - now.2;
                (error + cost <= error_max).then_some(cost / (now.1 - next.1))
            };
            let steps = candidates.iter().enumerate();
            let cheapest = steps
                .filter_map(|(index, c)| Some((index, price(c)?)))
                .min_by(|a, b| a.1.total_cmp(&b.1));
            match cheapest {
                Some((index, _)) => candidates[index].chosen += 1,
                None => return bytes_max == 0.0,
            }
        }
    }
}

/// Spends what the last step saved too much: of the steps that fit, the one back that gains most, until
/// none fits.
fn give_back(candidates: &mut [Candidate], mut rest: f64) {
    loop {
        let gain = |c: &Candidate| {
            let (now, before) = (c.points[c.chosen], c.points.get(c.chosen.checked_sub(1)?)?);
            let bytes = before.1 - now.1;
            (bytes <= rest && now.2 > before.2).then_some((now.2 - before.2, bytes))
        };
        let best = (candidates.iter().enumerate())
            .filter_map(|(index, c)| Some((index, gain(c)?)))
            .max_by(|a, b| a.1.0.total_cmp(&b.1.0));
        let Some((index, (_, bytes))) = best else { return };
        candidates[index].chosen -= 1;
        rest -= bytes;
    }
}

/// What rounding by second moments, in sequence, leaves of the error of the nearest levels, which is
/// predicted: MiniLM-L6 in 4 bits, on texts outside the calibration data.
const WEIGHT_LEFT: f64 = 0.36;
/// The same of a table by gradients.
const TABLE_LEFT: f64 = 0.67;

/// With scales and zero points.
fn bytes_of(predicted: &Predicted, (bits, block): Format) -> f64 {
    let (count, outputs) = (predicted.element_count, predicted.output_count.max(1));
    let bytes_each = f64::from(bits) / 8.0;
    let bytes = count as f64 * bytes_each;
    match (bits, block) {
        (16, _) => bytes,
        // A scale of f32 for each row.
        (8, 0) if predicted.is_table => bytes + 4.0 * outputs as f64,
        (_, 0) => bytes + (4.0 + bytes_each) * outputs as f64,
        (_, block) => {
            let scales = outputs * (count / outputs).div_ceil(block);
            let scale_bytes = if scales < HALF_MIN { 4.0 } else { 2.0 };
            bytes + (scale_bytes + bytes_each) * scales as f64
        }
    }
}

impl Pass for MixedQuantize {
    fn opset_min(&self) -> i64 {
        let block = self.block.all().first().copied().unwrap_or_default();
        weights::opset_min(if self.has(2) { 2 } else { 4 }, block, self.form)
    }

    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        Ok(self.plan_recorded(model, context)?.0)
    }

    fn plan_recorded(
        &self,
        model: &Model,
        context: &Context,
    ) -> Result<(Plan, Option<QuantizationRecord>), PassError> {
        let mut plan = Plan::default();
        let links = Links::new(&model.graph);
        let tables = lookups(&model.graph, &links, context);
        let mut weights = targets(&model.graph, &links, context, 0);
        if tables.is_empty() && weights.is_empty() {
            plan.remark("nothing to quantize: no weight of f32 that a product reads");
            return Ok((plan, None));
        }
        let (found, needed) = (model.opset(), self.opset_min());
        if found < needed {
            return Err(PassError::Opset { found, needed });
        }
        let mut candidates = self.candidates(model, context)?;
        let bytes_before: usize = model.graph.constants().map(|(_, t)| t.size_bytes()).sum();
        let known: usize = candidates
            .iter()
            .filter_map(|c| model.graph.constant(&c.name))
            .map(attar_tensor::Tensor::size_bytes)
            .sum();
        let fixed = (bytes_before - known) as f64;
        let is_met = self.choose(&mut candidates, fixed, bytes_before as f64);
        let format_of = |name: &str| {
            let candidate = candidates.iter().find(|candidate| candidate.name == name);
            candidate.map_or((32, 0), |candidate| candidate.points[candidate.chosen].0)
        };
        let mut builder = Builder::new(&model.graph);
        let replaced = write_tables(&mut builder, model, &tables, &format_of, context)?;
        for target in &mut weights {
            let (bits, block) = format_of(target.name);
            (target.bits, target.own_block) = (bits, Some(block));
        }
        let is_stored = |target: &Target| target.bits == 16;
        for target in weights.iter().filter(|target| is_stored(target)) {
            half::store_f16(&mut builder.plan, target.name, target.tensor);
        }
        weights.retain(|target| target.bits < 16);
        let method = Method {
            has_zero_points: true,
            block: None,
            rounding: Rounding::Gptq,
            scales_channels: false,
            scale_type: ScaleType::F16,
            is_sequential: true,
        };
        let form = self.form;
        let written =
            weights::write(&mut builder, model, &weights, method, form, context, &replaced)?;
        let mut record = written.record;
        plan = builder.finish();
        plan.remark(summary(&candidates, fixed, bytes_before as f64));
        written.remark.into_iter().for_each(|remark| plan.remark(remark));
        if !is_met {
            plan.warn("the size is not reached with the fewest bits that `bits` has");
        }
        if written.batch_count > 0 && !record.products.is_empty() {
            let values = record.values(&model.graph);
            let errors = output_errors(model, &plan, &values, written.batch_count, context)?;
            record.measured(&model.graph, &errors);
        }
        record.remarks().into_iter().for_each(|remark| plan.remark(remark));
        for candidate in &candidates {
            let ((bits, block), _, error) = candidate.points[candidate.chosen];
            let of_blocks = match block {
                0 => String::new(),
                block if self.block.all().len() > 1 => format!(", blocks of {block}"),
                _ => String::new(),
            };
            plan.remark(format!(
                "`{}` in {bits} bits{of_blocks}: {:.2} % of the outputs",
                candidate.name,
                100.0 * error.sqrt()
            ));
        }
        Ok((plan, Some(record).filter(|record| !record.products.is_empty())))
    }
}

/// Puts tables into the graph; returns what the levels of those stand for that have few.
fn write_tables(
    builder: &mut Builder,
    model: &Model,
    tables: &[Lookup],
    format_of: &dyn Fn(&str) -> Format,
    context: &Context,
) -> Result<Vec<(String, Tensor)>, PassError> {
    let is_coarse = |format: Format| format.0 == 4 || (format.0 == 8 && format.1 > 0);
    let coarse = tables.iter().filter(|lookup| is_coarse(format_of(lookup.name)));
    let coarse: Vec<String> = coarse.map(|lookup| lookup.name.into()).collect();
    let moments = table_moments(model, &coarse, context)?;
    let mut replaced = Vec::new();
    for lookup in tables {
        let of_table = moments.get(lookup.name).map(Vec::as_slice);
        let real = write_table(builder, lookup, format_of(lookup.name), of_table, context)?;
        replaced.extend(real.map(|real| (lookup.name.to_string(), real)));
    }
    Ok(replaced)
}

/// Puts a table into the graph; returns what its levels stand for, where it has few.
fn write_table(
    builder: &mut Builder,
    lookup: &Lookup,
    (bits, block): Format,
    moments: Option<&[f32]>,
    context: &Context,
) -> Result<Option<Tensor>, PassError> {
    let form = BlockForm { bits, block, has_zero_points: true, scale_type: ScaleType::F16 };
    match bits {
        4 | 8 if block > 0 => {
            lookup.write_blocks(builder, form, moments, context.threads).map(Some)
        }
        8 => {
            lookup.write_rows(builder)?;
            Ok(None)
        }
        16 => {
            half::store_f16(&mut builder.plan, lookup.name, lookup.table);
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// How much of the outputs is lost with fewer bits for each weight, measured one by one.
fn measured_reach(
    model: &Model,
    context: &Context,
    options: &BitsOptions,
) -> Result<Reach, PassError> {
    let reference = Reference::new(model, context)?;
    let mut measure = |model: &Model, _: [usize; 2]| {
        let output_error = Some(exactly(reference.lost(model)?.sqrt()));
        Ok::<_, PassError>(Measured { output_error, metric: None })
    };
    let found = bits_sensitivity(model, context, options, &mut measure)?;
    let of_levels = |levels: &[crate::LevelSensitivity]| {
        let measured = levels.iter().filter_map(|level| match level.level {
            Level::Bits(bits) => Some((bits, level.output_error?.value)),
            Level::Sparsity(_) => None,
        });
        measured.collect()
    };
    Ok(found.tensors.iter().map(|t| (t.name.clone(), of_levels(&t.levels))).collect())
}

/// Without an interval.
fn exactly(value: f64) -> Estimate {
    Estimate { value, low: value, high: value }
}

fn summary(candidates: &[Candidate], fixed: f64, before: f64) -> String {
    let count = |bits: u32| {
        candidates.iter().filter(|candidate| candidate.points[candidate.chosen].0.0 == bits).count()
    };
    let counts: Vec<String> = [2, 4, 8, 16, 32]
        .into_iter()
        .filter(|&bits| count(bits) > 0)
        .map(|bits| format!("{} in {bits} bits", count(bits)))
        .collect();
    let bytes: f64 = candidates.iter().map(|c| c.points[c.chosen].1).sum::<f64>() + fixed;
    let error: f64 = candidates.iter().map(|c| c.points[c.chosen].2).sum();
    format!(
        "{}: {:.1} % of the bytes, for a predicted {:.1} % of the outputs",
        counts.join(", "),
        100.0 * bytes / before,
        100.0 * error.sqrt()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, points: &[(u32, f64, f64)]) -> Candidate {
        let points = points.iter().map(|&(bits, bytes, error)| ((bits, 64), bytes, error));
        Candidate { name: name.into(), points: points.collect(), chosen: 0 }
    }

    fn pass(settings: &str) -> MixedQuantize {
        settings.parse::<toml::Table>().unwrap().try_into().unwrap()
    }

    fn bits(candidates: &[Candidate]) -> Vec<u32> {
        candidates.iter().map(|c| c.points[c.chosen].0.0).collect()
    }

    fn two() -> [Candidate; 2] {
        [
            candidate("robust", &[(16, 200.0, 0.0), (8, 100.0, 0.01), (4, 50.0, 0.02)]),
            candidate("fragile", &[(16, 200.0, 0.0), (8, 100.0, 0.1), (4, 50.0, 9.0)]),
        ]
    }

    #[test]
    fn what_minds_least_gets_the_fewest_bits() {
        let mut candidates = two();
        assert!(pass("size_ratio = 0.2").choose(&mut candidates, 0.0, 800.0));
        assert_eq!(bits(&candidates), [4, 8]);
        let mut candidates = two();
        assert!(pass("size_ratio = 0.125").choose(&mut candidates, 0.0, 800.0));
        assert_eq!(bits(&candidates), [4, 4]);
        let mut candidates = two();
        assert!(!pass("size_ratio = 0.1").choose(&mut candidates, 0.0, 800.0), "out of reach");
    }

    #[test]
    fn what_the_last_step_leaves_is_spent() {
        let mut candidates = [
            candidate("large", &[(8, 100.0, 0.0), (4, 50.0, 1.0)]),
            candidate("small", &[(8, 10.0, 0.0), (4, 5.0, 0.05)]),
            candidate("quiet", &[(8, 10.0, 0.0), (4, 5.0, 0.04)]),
        ];
        // The small ones go first, and are not enough; with the large one there is room for one of them.
        assert!(pass("size_ratio = 0.55").choose(&mut candidates, 0.0, 120.0));
        assert_eq!(bits(&candidates), [4, 8, 4]);
    }

    #[test]
    fn an_error_is_not_passed() {
        let mut candidates = two();
        // Squared: 0.09.
        assert!(pass("error_max = 0.3").choose(&mut candidates, 0.0, 800.0));
        assert_eq!(bits(&candidates), [4, 16]);
    }

    #[test]
    fn bits_without_gain_are_passed_over() {
        // 8 bits lose as much as 4.
        let errors = [((16, 0), 0.0), ((8, 64), 0.1), ((4, 64), 0.1)].to_vec();
        let found = points(&pass(""), errors, 100);
        assert_eq!(found, [(16, 0), (4, 64)]);
    }

    fn points(pass: &MixedQuantize, errors: Vec<(Format, f64)>, count: usize) -> Vec<Format> {
        let predicted = Predicted {
            name: "w".into(),
            is_table: false,
            element_count: count,
            output_count: 1,
            errors,
        };
        let reach = vec![(4, 0.02)];
        let candidate = pass.candidate(&predicted, 128, Some(&reach));
        candidate.points.iter().map(|point| point.0).collect()
    }

    #[test]
    fn of_several_blocks_those_remain_that_gain_for_their_bytes() {
        let errors = [
            ((8, 128), 0.001),
            ((4, 32), 0.06),
            // Hardly better than blocks of 128, and larger.
            ((4, 64), 0.099),
            ((4, 128), 0.1),
        ];
        let found = points(&pass("block = [32, 64, 128]"), errors.to_vec(), 1 << 14);
        assert_eq!(found, [(8, 128), (4, 32), (4, 128)]);
        let pass = pass("block = [32, 0]");
        assert_eq!(pass.blocks(), [0, 32]);
    }

    #[test]
    fn bytes_are_those_of_levels_scales_and_zero_points() {
        let predicted = |is_table| Predicted {
            name: "w".into(),
            is_table,
            element_count: 384 * 100,
            output_count: 100,
            errors: Vec::new(),
        };
        let bytes = |is_table, format| bytes_of(&predicted(is_table), format);
        assert_eq!(bytes(false, (16, 0)), 76_800.0);
        assert_eq!(bytes(true, (8, 0)), 38_400.0 + 400.0);
        assert_eq!(bytes(false, (8, 0)), 38_400.0 + 500.0);
        // Twelve blocks of 32 each.
        assert_eq!(bytes(false, (4, 32)), 19_200.0 + 1200.0 * 2.5);
        // 100 scales are too few for f16.
        assert_eq!(bytes(false, (4, 384)), 19_200.0 + 100.0 * 4.5);
    }
}
