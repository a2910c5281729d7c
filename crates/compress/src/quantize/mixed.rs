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
use super::weights::{self, Block, Form, Method, Rounding, ScaleType, Target, targets};
use crate::half;
use crate::reference::Reference;
use crate::sensitivity::{
    BitsOptions, Level, Measured, Sensitivity, TensorSensitivity, bits_sensitivity, hull,
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
    block: Block,
    #[serde(default)]
    form: Form,
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
        help: "inputs that share a scale, as in quantize.weights",
    },
    OptionEntry { key: "form", default: "\"qdq\"", help: "as in quantize.weights" },
];

/// What has a weight's place on its curve.
struct Candidate {
    name: String,
    /// By falling bytes: bits, bytes, and the squared error of the outputs.
    points: Vec<(u32, f64, f64)>,
    /// Index of what it has.
    chosen: usize,
}

impl MixedQuantize {
    fn block(&self) -> usize {
        self.block.0.unwrap_or(usize::MAX)
    }

    fn has(&self, bits: u32) -> bool {
        self.bits.contains(&Bits(bits))
    }

    /// Every weight and table with what each number of bits costs.
    fn candidates(&self, model: &Model, context: &Context) -> Result<Vec<Candidate>, PassError> {
        let mut bits: Vec<u32> = self.bits.iter().map(|bits| bits.0).filter(|b| *b != 32).collect();
        bits.sort_unstable_by(|a, b| b.cmp(a));
        bits.dedup();
        let Some(&fewest) = bits.last() else { return Ok(Vec::new()) };
        let options = BitsOptions { bits, measured: Vec::new(), block: self.block(), seed: 0 };
        let found = match reach_of_bits(model, context, &options) {
            // No gradient flows through some operator of it.
            Err(PassError::Train(_) | PassError::NotFinite { .. }) => {
                let measured = if fewest == 2 && self.has(4) { vec![4, 2] } else { vec![fewest] };
                let options = BitsOptions { measured, ..options };
                let reference = Reference::new(model, context)?;
                let mut measure = |model: &Model, _: [usize; 2]| {
                    let output_error = Some(exactly(reference.lost(model)?.sqrt()));
                    Ok::<_, PassError>(Measured { output_error, metric: None })
                };
                bits_sensitivity(model, context, &options, &mut measure)?
            }
            reach => with_reach(model, context, &options, &reach?)?,
        };
        Ok(found.tensors.iter().map(|tensor| self.candidate(tensor)).collect())
    }

    fn candidate(&self, tensor: &TensorSensitivity) -> Candidate {
        // What is measured says how much of an error reaches the outputs.
        let measured = tensor.levels.iter().rev().find_map(|level| {
            let output = level.output_error?.value;
            (level.error.value > 0.0).then(|| output / level.error.value)
        });
        let weight = measured.unwrap_or(1.0);
        let count = tensor.element_count as f64;
        let is_table = tensor.op_type == "Gather";
        let mut points = Vec::new();
        if self.has(32) {
            points.push((32, 4.0 * count, 0.0));
        }
        for level in &tensor.levels {
            let Level::Bits(bits) = level.level else { continue };
            let error = level.output_error.map_or(weight * level.error.value, |e| e.value);
            points.push((
                bits,
                count * bytes_per_weight(bits, self.block(), is_table),
                error.powi(2),
            ));
        }
        // On the hull alone: bytes saved against error.
        let first = points.first().map_or(0.0, |point| point.1);
        let line: Vec<(f64, f64)> =
            points.iter().map(|(_, bytes, error)| (first - bytes, *error)).collect();
        let on_hull = hull(&line);
        points.retain(|(_, bytes, error)| on_hull.contains(&(first - bytes, *error)));
        Candidate { name: tensor.name.clone(), points, chosen: 0 }
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

/// With its share of scales in f16, and zero points.
fn bytes_per_weight(bits: u32, block: usize, is_table: bool) -> f64 {
    let bits = f64::from(bits);
    match (bits as u32, is_table) {
        (16, _) | (8, true) => bits / 8.0,
        _ => bits / 8.0 + (2.0 + bits / 8.0) / block as f64,
    }
}

impl Pass for MixedQuantize {
    fn opset_min(&self) -> i64 {
        weights::opset_min(if self.has(2) { 2 } else { 4 }, self.block, self.form)
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
        let bits_of = |name: &str| {
            let candidate = candidates.iter().find(|candidate| candidate.name == name);
            candidate.map_or(32, |candidate| candidate.points[candidate.chosen].0)
        };
        let mut builder = Builder::new(&model.graph);
        let replaced = self.write_tables(&mut builder, model, &tables, &bits_of, context)?;
        weights.iter_mut().for_each(|target| target.bits = bits_of(target.name));
        let is_stored = |target: &Target| target.bits == 16;
        for target in weights.iter().filter(|target| is_stored(target)) {
            half::store_f16(&mut builder.plan, target.name, target.tensor);
        }
        weights.retain(|target| target.bits < 16);
        let method = Method {
            has_zero_points: true,
            block: self.block.0,
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
            let (bits, _, error) = candidate.points[candidate.chosen];
            plan.remark(format!(
                "`{}` in {bits} bits: {:.2} % of the outputs",
                candidate.name,
                100.0 * error.sqrt()
            ));
        }
        Ok((plan, Some(record).filter(|record| !record.products.is_empty())))
    }
}

impl MixedQuantize {
    /// Puts tables into the graph; returns what the levels of those stand for that have few.
    fn write_tables(
        &self,
        builder: &mut Builder,
        model: &Model,
        tables: &[Lookup],
        bits_of: &dyn Fn(&str) -> u32,
        context: &Context,
    ) -> Result<Vec<(String, Tensor)>, PassError> {
        let coarse = tables.iter().filter(|lookup| bits_of(lookup.name) == 4);
        let coarse: Vec<String> = coarse.map(|lookup| lookup.name.into()).collect();
        let moments = table_moments(model, &coarse, context)?;
        let mut replaced = Vec::new();
        for lookup in tables {
            let of_table = moments.get(lookup.name).map(Vec::as_slice);
            let real =
                self.write_table(builder, lookup, bits_of(lookup.name), of_table, context)?;
            replaced.extend(real.map(|real| (lookup.name.to_string(), real)));
        }
        Ok(replaced)
    }

    /// Puts a table into the graph; returns what its levels stand for, where it has few.
    fn write_table(
        &self,
        builder: &mut Builder,
        lookup: &Lookup,
        bits: u32,
        moments: Option<&[f32]>,
        context: &Context,
    ) -> Result<Option<Tensor>, PassError> {
        let block = self.block.0.unwrap_or(64);
        let form = BlockForm { block, has_zero_points: true, scale_type: ScaleType::F16 };
        match bits {
            4 => lookup.write_blocks(builder, form, moments, context.threads).map(Some),
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
}

/// What is predicted of each product, and how much of it reaches the outputs.
fn with_reach(
    model: &Model,
    context: &Context,
    options: &BitsOptions,
    reach: &BTreeMap<String, (u32, f64)>,
) -> Result<Sensitivity, PassError> {
    let mut unmeasured = |_: &Model, _: [usize; 2]| Ok::<_, PassError>(Measured::default());
    let mut found = bits_sensitivity(model, context, options, &mut unmeasured)?;
    for tensor in &mut found.tensors {
        let Some((bits, reach)) = reach.get(&tensor.name) else { continue };
        let level = tensor.levels.iter_mut().find(|at| at.level == Level::Bits(*bits));
        if let Some(level) = level {
            level.output_error = Some(exactly(*reach));
        }
    }
    Ok(found)
}

/// Without an interval.
fn exactly(value: f64) -> Estimate {
    Estimate { value, low: value, high: value }
}

fn summary(candidates: &[Candidate], fixed: f64, before: f64) -> String {
    let count = |bits: u32| {
        candidates.iter().filter(|candidate| candidate.points[candidate.chosen].0 == bits).count()
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
        Candidate { name: name.into(), points: points.to_vec(), chosen: 0 }
    }

    fn pass(settings: &str) -> MixedQuantize {
        settings.parse::<toml::Table>().unwrap().try_into().unwrap()
    }

    fn bits(candidates: &[Candidate]) -> Vec<u32> {
        candidates.iter().map(|c| c.points[c.chosen].0).collect()
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
        let level = |bits, value| crate::LevelSensitivity {
            level: Level::Bits(bits),
            error: crate::Estimate { value, low: value, high: value },
            output_error: None,
            metric: None,
        };
        let tensor = TensorSensitivity {
            name: "w".into(),
            node: String::new(),
            op_type: "MatMul".into(),
            block: String::new(),
            element_count: 100,
            // 8 bits lose as much as 4.
            levels: vec![level(16, 0.0), level(8, 0.1), level(4, 0.1)],
        };
        let found: Vec<u32> =
            pass("").candidate(&tensor).points.iter().map(|point| point.0).collect();
        assert_eq!(found, [16, 4]);
    }
}
