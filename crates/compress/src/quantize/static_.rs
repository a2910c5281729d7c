//! Static quantization: ranges fixed by calibration, written as QDQ.
//!
//! Activations are u8 and weights symmetric i8 per output channel: the pair that runtimes have
//! their fastest kernels for.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_ops::fuse::batch_normalization;
use attar_tensor::Tensor;
use serde::Deserialize;

use super::attention::QuantizedAttention;
use super::bias;
use super::embedding::quantize_embeddings;
use super::keep_float::{Cost, KeepFloat, kept};
use super::nodes::{Builder, weight_of};
use super::observer::Observer;
use super::output_error::output_errors;
use super::placement::Placement;
use super::product::{self, Method, Rounded, Rounding, Saturation, WeightScale};
use super::record::QuantizationRecord;
use super::sites::{Site, Wanted, sites};
use super::smooth::Smooth;
use crate::parallel::each_in_order;
use crate::{Context, OptionEntry, Pass, PassError};

/// 8-bit weights and activations with fixed ranges.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StaticQuantize {
    #[serde(default = "default_true")]
    embeddings: bool,
    #[serde(default)]
    weight_bits: WeightBits,
    #[serde(default)]
    attention: QuantizedAttention,
    #[serde(default)]
    saturation: Saturation,
    #[serde(default)]
    observer: Observer,
    #[serde(default)]
    smooth: Smooth,
    #[serde(default)]
    rounding: Rounding,
    #[serde(default)]
    weight_scale: WeightScale,
    #[serde(default = "default_true")]
    bias_correction: bool,
    #[serde(default)]
    keep_float: KeepFloat,
}

/// Bits of a weight. With 7, no two products leave 16 bits.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "i64")]
enum WeightBits {
    Seven,
    #[default]
    Eight,
}

impl WeightBits {
    fn level_max(self) -> i8 {
        match self {
            Self::Seven => 63,
            Self::Eight => 127,
        }
    }
}

impl TryFrom<i64> for WeightBits {
    type Error = String;

    fn try_from(bits: i64) -> Result<Self, String> {
        match bits {
            7 => Ok(Self::Seven),
            8 => Ok(Self::Eight),
            _ => Err(format!("weight_bits is {bits}, expected 7 or 8")),
        }
    }
}

pub(crate) fn default_true() -> bool {
    true
}

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry {
        key: "embeddings",
        default: "true",
        help: "embedding tables in 8 bits too, one scale per row",
    },
    OptionEntry {
        key: "attention",
        default: "\"auto\"",
        help: "Q, K and V of attention in 8 bits too: \"auto\", where products in 8 bits make all \
               three; true, everywhere; false, nowhere",
    },
    OptionEntry {
        key: "weight_bits",
        default: "8",
        help: "8, or 7 for half as many levels in every channel",
    },
    OptionEntry {
        key: "saturation",
        default: "\"safe\"",
        help: "\"safe\": the same integers on CPUs without VNNI, whose 16-bit sums saturate: weights \
               of channels at risk are bounded; or \"ignore\"",
    },
    OptionEntry {
        key: "observer",
        default: "\"auto\"",
        help: "how ranges of activations are found: \"minmax\", \"moving-average\", \"percentile\", \
               \"entropy\", \"mse\", or \"auto\": of these, for each tensor, the one of least error in \
               what reads it",
    },
    OptionEntry {
        key: "smooth",
        default: "\"all\"",
        help: "SmoothQuant, channels of an activation divided and weights multiplied: \"auto\", where \
               the error falls to less than two fifths; \"all\", where it falls by a tenth; \"off\"",
    },
    OptionEntry {
        key: "rounding",
        default: "\"gptq\"",
        help: "of weights: \"nearest\"; \"gptq\", by second moments of inputs of up to 1024 channels; \
               \"descent\", from there on level by level",
    },
    OptionEntry {
        key: "weight_scale",
        default: "\"max\"",
        help: "of a channel of weights: from the largest, \"max\", or of least squared error, \"mse\"",
    },
    OptionEntry {
        key: "bias_correction",
        default: "true",
        help: "the mean that rounded weights add to an output is taken off its bias",
    },
    OptionEntry {
        key: "keep_float",
        default: "\"auto\"",
        help: "products that stay in float: \"auto\", those with four times as much of all squared \
               error as of all work; a number, so many of most error; \"off\"",
    },
];

impl Pass for StaticQuantize {
    fn prepare(&self, model: &Model) -> Plan {
        fold_normalizations(model)
    }

    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        Ok(self.plan_recorded(model, context)?.0)
    }

    fn plan_recorded(
        &self,
        model: &Model,
        context: &Context,
    ) -> Result<(Plan, Option<QuantizationRecord>), PassError> {
        if model.opset() < 13 {
            return Err(PassError::Opset { found: model.opset(), needed: 13 });
        }
        let links = Links::new(&model.graph);
        let mut placement = Placement::new(&model.graph, &links, context);
        placement.add_attention(&model.graph, &links, context, self.attention);
        let mut builder = Builder::new(&model.graph);
        let mut record = QuantizationRecord::default();
        let mut batch_count = 0;
        if !placement.products.is_empty() {
            let mut calibrated = sites(model, &links, &placement, self.wanted(), context)?;
            batch_count = calibrated.batch_count;
            let rounded =
                self.rounded(&links, model, &placement, &calibrated.sites, context.threads)?;
            // The largest of what was held, before two models are run.
            calibrated.sites.values_mut().for_each(|site| site.gram = None);
            record = QuantizationRecord::new(&model.graph, &calibrated.sites, &rounded);
            let kept = self.kept(model, &calibrated.sites, &rounded);
            placement.leave(&kept.iter().map(|(index, _)| *index).collect());
            record.keep_float(&model.graph, kept);
            placement.products.retain(|index| rounded.iter().any(|(known, _)| known == index));
            placement.readers.retain(|value, _| calibrated.sites.contains_key(value));
            for (value, readers) in &placement.readers {
                if let Some(site) = calibrated.sites.get(value) {
                    insert_pair(&mut builder, value, site, readers);
                }
            }
            for (index, rounded) in rounded {
                let site = calibrated.sites.get(&model.graph.nodes[index].inputs[0]);
                if let Some(site) = site.filter(|_| placement.products.contains(&index)) {
                    self.set_product(&mut builder, &links, index, site, rounded);
                }
            }
        }
        let tables =
            if self.embeddings { quantize_embeddings(&mut builder, &links, context)? } else { 0 };
        let count = placement.products.len();
        let bounding = builder.bounding;
        let mut plan = builder.finish();
        if let Some(remark) = bounding.remark() {
            plan.remark(remark);
        }
        plan.remark(match count + tables {
            0 => "nothing to quantize: no product, convolution or embedding with a constant f32 \
                  weight"
                .into(),
            _ => format!(
                "{count} products and convolutions and {tables} embedding tables in 8 bits, {} \
                 activation ranges",
                placement.readers.len()
            ),
        });
        if placement.unfolded_count > 0 {
            plan.remark(format!(
                "{} convolutions are followed by BatchNormalization that cannot be folded into \
                 them: it runs in float",
                placement.unfolded_count
            ));
        }
        if batch_count > 0 {
            let values = record.outputs(&model.graph);
            let errors = output_errors(model, &plan, &values, batch_count, context)?;
            record.measured(&model.graph, &errors);
            record.remarks().into_iter().for_each(|remark| plan.remark(remark));
        }
        Ok((plan, Some(record).filter(|record| !record.products.is_empty())))
    }
}

impl StaticQuantize {
    fn wanted(&self) -> Wanted {
        Wanted {
            observer: self.observer,
            smooth: self.smooth,
            moments: self.rounding != Rounding::Nearest,
            level_max: self.weight_bits.level_max(),
        }
    }

    /// The weights of every product that calibration reached, by the index of its node.
    fn rounded(
        &self,
        links: &Links,
        model: &Model,
        placement: &Placement,
        sites: &BTreeMap<String, Site>,
        threads: NonZeroUsize,
    ) -> Result<Vec<(usize, Rounded)>, PassError> {
        let method = Method {
            rounding: self.rounding,
            weight_scale: self.weight_scale,
            saturation: self.saturation,
            level_max: self.weight_bits.level_max(),
        };
        let of = |index: usize| {
            let node = &model.graph.nodes[index];
            let site = sites.get(&node.inputs[0]);
            site.map_or(Ok(None), |site| product::round(links, node, site, method))
        };
        let all = each_in_order(&placement.products, threads, |&index| (index, of(index)));
        let known = |(index, rounded): (usize, Result<Option<Rounded>, PassError>)| {
            rounded.map(|rounded| rounded.map(|rounded| (index, rounded))).transpose()
        };
        all.into_iter().filter_map(known).collect()
    }

    /// The products that stay in float, with the reason.
    fn kept(
        &self,
        model: &Model,
        sites: &BTreeMap<String, Site>,
        rounded: &[(usize, Rounded)],
    ) -> Vec<(usize, String)> {
        let cost = |(index, rounded): &(usize, Rounded)| {
            let site = &sites[&model.graph.nodes[*index].inputs[0]];
            let squared_error = site.chosen.relative_error.powi(2) + rounded.error.powi(2);
            let weights = rounded.weight.values.element_count();
            Cost {
                index: *index,
                squared_error,
                macs: site.statistics.count as f64 * weights as f64,
            }
        };
        kept(&rounded.iter().map(cost).collect::<Vec<_>>(), self.keep_float)
    }

    fn set_product(
        &self,
        builder: &mut Builder,
        links: &Links,
        index: usize,
        site: &Site,
        rounded: Rounded,
    ) {
        let node = &builder.graph.nodes[index];
        let Some(weight) = weight_of(links, node) else { return };
        builder.bounding.add(rounded.bounding);
        let quantized = builder.rounded_weight(weight.name, weight.axis, rounded.weight);
        let real = format!("{}_dequantized", node.label().trim_start_matches('/'));
        let channels = weight.tensor.shape()[weight.axis];
        let zero = format!("{}_zero_point", quantized.values);
        builder.set(&zero, Tensor::new(&[channels], &vec![0_i8; channels]));
        let inputs = [quantized.values.as_str(), &quantized.scale, &zero];
        let dequantize = Node::new("DequantizeLinear", &real, &inputs, &[&real])
            .with_attribute("axis", weight.axis as i64);
        builder.add(dequantize);
        builder.replaced(weight.name);
        builder.plan.push(Edit::SetInput { index, input: 1, value: real });
        let scales: Vec<f32> = (quantized.scales.slice::<f32>().iter())
            .map(|scale| scale * site.chosen.range.scale)
            .collect();
        let shift = self.bias_correction.then_some(rounded.shift.as_slice());
        bias::quantize(builder, links, index, &scales, shift);
    }
}

/// Runtimes keep a convolution in integers only if what follows it is no normalization.
pub fn fold_normalizations(model: &Model) -> Plan {
    let folded = batch_normalization::plan(model);
    let mut plan = Plan { edits: folded.edits, ..Plan::default() };
    let is_fold = |edit: &&Edit| matches!(edit, Edit::ReplaceNode { .. });
    let count = plan.edits.iter().filter(is_fold).count();
    if count > 0 {
        plan.remark(format!("{count} BatchNormalizations are folded into convolutions first"));
    }
    plan
}

/// `QuantizeLinear` and `DequantizeLinear` on a value, its channels divided before where the site
/// says so; `readers` read the result.
fn insert_pair(builder: &mut Builder, value: &str, site: &Site, readers: &[(usize, usize)]) {
    let named = |suffix: &str| format!("{value}_{suffix}");
    let (scale, zero) = (named("scale"), named("zero_point"));
    let (quantized, dequantized) = (named("quantized"), named("dequantized"));
    let range = site.chosen.range;
    builder.set(&scale, Tensor::scalar(range.scale));
    builder.set(&zero, Tensor::scalar(range.zero_point as u8));
    let mut source = value.to_string();
    if let Some(divisors) = &site.divisors {
        let factors: Vec<f32> = divisors.iter().map(|s| 1.0 / s).collect();
        let (factor, smooth) = (named("smooth_factor"), named("smooth"));
        builder.set(&factor, Tensor::new(&[factors.len()], &factors));
        builder.add(Node::new("Mul", &smooth, &[value, &factor], &[&smooth]));
        source = smooth;
    }
    let inputs = [source.as_str(), &scale, &zero];
    let quantize = Node::new("QuantizeLinear", &quantized, &inputs, &[&quantized]);
    let inputs = [quantized.as_str(), &scale, &zero];
    let dequantize = Node::new("DequantizeLinear", &dequantized, &inputs, &[&dequantized]);
    builder.add(quantize);
    builder.add(dequantize);
    for &(index, input) in readers {
        let value = dequantized.clone();
        builder.plan.push(Edit::SetInput { index, input, value });
    }
}

#[cfg(test)]
mod tests;
