//! Mixed precision: each weight gets the bits with which, for the bytes that all may have, the model's
//! outputs lose least.
//!
//! What each product loses at each number of bits is predicted from one pass over the data; how much
//! of that reaches the outputs, where that weight alone has the fewest bits, from gradients, or measured
//! where none flow. The squared errors add up, so that the cheapest steps for their bytes are taken, on
//! the lower convex hull of each curve. What is rounded first, tables before all, is made up for by what
//! comes after it.

mod candidate;

use attar_graph::{Links, Model, Plan};
use attar_tensor::Tensor;
use serde::Deserialize;

use self::candidate::{Candidate, summary};
use super::embedding::{BlockForm, Lookup, lookups, table_moments};
use super::nodes::Builder;
use super::output_error::output_errors;
use super::record::QuantizationRecord;
use super::weights::{self, Block, Form, Method, Rounding, ScaleType, Target, targets};
use crate::half;
use crate::sensitivity::Format;
use crate::{Context, Fraction, OptionEntry, Pass, PassError};

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
#[serde(try_from = "toml::Value")]
struct Blocks(Vec<Block>);

impl TryFrom<toml::Value> for Blocks {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        let wrong = || format!("block is {value}, expected a number of inputs or a list of them");
        let one = |value: &toml::Value| Block::try_from(value.as_integer().ok_or_else(wrong)?);
        match &value {
            toml::Value::Array(values) if values.is_empty() => Err(wrong()),
            toml::Value::Array(values) => {
                Ok(Self(values.iter().map(one).collect::<Result<_, _>>()?))
            }
            single => Ok(Self(vec![one(single)?])),
        }
    }
}

impl Default for Blocks {
    fn default() -> Self {
        Self(vec![Block::default()])
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

impl MixedQuantize {
    /// 0 for all inputs of an output.
    fn blocks(&self) -> Vec<usize> {
        let mut blocks: Vec<usize> =
            self.block.0.iter().map(|block| block.0.unwrap_or(0)).collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }

    fn has(&self, bits: u32) -> bool {
        self.bits.contains(&Bits(bits))
    }
}

impl Pass for MixedQuantize {
    fn opset_min(&self) -> i64 {
        let block = self.block.0.first().copied().unwrap_or_default();
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
            candidate.map_or((32, 0), Candidate::format)
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
        let names_blocks = self.block.0.len() > 1;
        candidates.iter().for_each(|candidate| plan.remark(candidate.remark(names_blocks)));
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
