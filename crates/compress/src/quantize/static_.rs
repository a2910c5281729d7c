//! Static quantization: ranges fixed by calibration, written as QDQ.
//!
//! Activations are u8 and weights symmetric i8 per output channel: the pair that runtimes have
//! their fastest kernels for.

mod kept;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use attar_graph::{Edit, Graph, Links, Model, Node, Plan};
use attar_ops::fuse::batch_normalization;
use attar_tensor::Tensor;
use serde::Deserialize;

use super::attention::QuantizedAttention;
use super::bias;
use super::embedding::quantize_embeddings;
use super::equalize::equalize_ranges;
use super::keep_float::{ALL_ERROR_MAX, KeepFloat};
use super::nodes::{Builder, weight_of};
use super::observer::Observer;
use super::output_error::output_errors;
use super::placement::Placement;
use super::product::{self, Method, Rounded, Rounding, Saturation, ScaleGrid, WeightScale};
use super::record::QuantizationRecord;
use super::recurrent;
use super::sites::{Site, Wanted, sites};
use super::smooth::Smooth;
use super::statistics::ChannelAxis;
use crate::parallel::each_in_order;
use crate::{Context, Pass, PassError};
use kept::Known;
pub(crate) use settings::OPTIONS;
use settings::{ActivationBits, Carry, GivenRanges, WeightBits};

/// 8-bit weights and activations with fixed ranges.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "settings, each read by its name")]
pub(crate) struct StaticQuantize {
    #[serde(default = "default_true")]
    embeddings: bool,
    #[serde(default = "default_true")]
    recurrent: bool,
    #[serde(default)]
    weight_bits: WeightBits,
    #[serde(default)]
    activation_bits: ActivationBits,
    #[serde(default)]
    carry: Carry,
    #[serde(default)]
    scales: ScaleGrid,
    #[serde(default)]
    ranges: GivenRanges,
    #[serde(default)]
    attention: QuantizedAttention,
    #[serde(default)]
    saturation: Saturation,
    #[serde(default)]
    observer: Observer,
    #[serde(default)]
    smooth: Smooth,
    #[serde(default = "default_true")]
    equalize: bool,
    #[serde(default)]
    rounding: Rounding,
    #[serde(default)]
    weight_scale: WeightScale,
    #[serde(default = "default_true")]
    bias_correction: bool,
    #[serde(default)]
    keep_float: KeepFloat,
}

pub(crate) fn default_true() -> bool {
    true
}

impl Pass for StaticQuantize {
    fn opset_min(&self) -> i64 {
        if self.is_wide() || self.weight_bits == WeightBits::Sixteen { 21 } else { 13 }
    }

    fn prepare(&self, model: &Model) -> Result<Plan, PassError> {
        Ok(fold_normalizations(model))
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
        let equalized = match context.calibration {
            Some(_) if self.equalize && !self.is_wide() => {
                equalize_ranges(model, context, self.weight_bits.level_max())?
            }
            _ => None,
        };
        let Some(equalized) = equalized else { return self.planned(model, context) };
        let (mut plan, record) = self.planned(&equalized.model, context)?;
        plan.edits.splice(0..0, equalized.edits);
        plan.remark(format!(
            "channels of {} values, or sets of values that are added up, have one range, by factors in the \
             weights around",
            equalized.count
        ));
        Ok((plan, record))
    }
}

impl StaticQuantize {
    /// Plans for a model whose channels are as they are to be.
    fn planned(
        &self,
        model: &Model,
        context: &Context,
    ) -> Result<(Plan, Option<QuantizationRecord>), PassError> {
        let links = Links::new(&model.graph);
        let mut placement = self.place(model, &links, &BTreeSet::new(), context);
        self.check_ranges(&placement)?;
        let mut builder = Builder::new(&model.graph);
        let mut record = QuantizationRecord::default();
        let (mut batch_count, mut time) = (0, None);
        if !placement.readers.is_empty() {
            let mut calibrated = sites(model, &links, &placement, self.wanted(), context)?;
            batch_count = calibrated.batch_count;
            let rounded =
                self.rounded(&links, model, &placement, &calibrated.sites, context.threads)?;
            // The largest of what was held, before two models are run.
            calibrated.sites.values_mut().for_each(|site| site.gram = None);
            record = QuantizationRecord::new(&model.graph, &calibrated.sites, &rounded);
            let known = Known { model, links: &links, sites: &calibrated.sites, rounded: &rounded };
            known.reached(&mut placement);
            for &index in &placement.layers {
                record.add_layer(&model.graph.nodes[index], &calibrated.sites);
            }
            let kept = self.kept(&known, &placement, batch_count, context)?;
            let left: BTreeSet<usize> = kept.nodes.iter().map(|(index, _)| *index).collect();
            if !left.is_empty() {
                placement = self.place(model, &links, &left, context);
                known.reached(&mut placement);
            }
            time = kept.time;
            record.keep_float(&model.graph, kept.nodes);
            for (index, error) in self.write(&mut builder, &known, &placement)? {
                record.weights_of_layer(&model.graph.nodes[index], error);
            }
        }
        let tables =
            if self.embeddings { quantize_embeddings(&mut builder, &links, context)? } else { 0 };
        let bounding = builder.bounding;
        let mut plan = builder.finish();
        if let Some(remark) = bounding.remark() {
            plan.remark(remark);
        }
        say_what(&mut plan, &placement, tables);
        if let Some(time) = time {
            self.say_time(time, &mut plan);
        }
        if batch_count > 0 {
            self.measure(model, &mut plan, &mut record, batch_count, context)?;
        }
        Ok((plan, Some(record).filter(|record| !record.products.is_empty())))
    }

    /// Enters what the plan does to products and outputs.
    fn measure(
        &self,
        model: &Model,
        plan: &mut Plan,
        record: &mut QuantizationRecord,
        batch_count: usize,
        context: &Context,
    ) -> Result<(), PassError> {
        let values = record.values(&model.graph);
        let errors = output_errors(model, plan, &values, batch_count, context)?;
        record.measured(&model.graph, &errors);
        record.remarks().into_iter().for_each(|remark| plan.remark(remark));
        if record.worst_output() > ALL_ERROR_MAX && self.keep_float == KeepFloat::Auto {
            plan.remark(
                "that is far: `keep_float = \"measured\"`, or a smaller share of error as 0.1, tries \
                 every product by itself and leaves in float what it takes",
            );
        }
        Ok(())
    }

    /// How the time that was found compares with the one that was asked for.
    fn say_time(&self, time: f64, plan: &mut Plan) {
        let percent = 100.0 * time;
        match self.keep_float {
            KeepFloat::Time(most) if time > most => plan.warn(format!(
                "{percent:.0} % of the time with every product in 8 bits: {:.0} % are not reached; prune \
                 first",
                100.0 * most
            )),
            _ => plan.remark(format!("{percent:.0} % of the time on this runtime, as it was measured")),
        }
    }

    /// That every given range is one of a value with a range.
    fn check_ranges(&self, placement: &Placement) -> Result<(), PassError> {
        let names: Vec<&str> = placement.readers.keys().map(String::as_str).collect();
        let mut patterns = self.ranges.0.iter().map(|(patterns, _)| patterns);
        match patterns.find_map(|patterns| patterns.unmatched(&names).first().copied()) {
            None => Ok(()),
            Some(name) => Err(PassError::Settings {
                pass: "quantize.static",
                message: format!(
                    "`ranges` gives one for `{name}`, and no such value is quantized; there are {}",
                    names.join(", ")
                ),
                known: "ranges".into(),
            }),
        }
    }

    /// Whether activations have 16 bits.
    fn is_wide(&self) -> bool {
        self.activation_bits == ActivationBits::Sixteen
    }

    fn wanted(&self) -> Wanted<'_> {
        let is_narrow = self.weight_bits != WeightBits::Sixteen;
        Wanted {
            // The grid is so fine that nothing is gained by leaving a part of the values out, nor by
            // making channels alike.
            observer: if self.is_wide() { self.observer.or_first() } else { self.observer },
            smooth: if self.is_wide() { Smooth::Off } else { self.smooth },
            moments: self.rounding != Rounding::Nearest && is_narrow,
            level_max: self.weight_bits.level_max(),
            grid: self.scales,
            ranges: &self.ranges.0,
        }
    }

    fn method(&self) -> Method {
        Method {
            rounding: self.rounding,
            weight_scale: self.weight_scale,
            saturation: if self.is_wide() { Saturation::Ignore } else { self.saturation },
            level_max: self.weight_bits.level_max(),
            is_wide: self.weight_bits == WeightBits::Sixteen,
            grid: self.scales,
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
        let method = self.method();
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

    /// What is quantized where the nodes of `left` stay in float.
    fn place(
        &self,
        model: &Model,
        links: &Links,
        left: &BTreeSet<usize>,
        context: &Context,
    ) -> Placement {
        let graph = &model.graph;
        let mut placement = Placement::without(left, graph, links, context);
        placement.add_attention(graph, links, context, self.attention);
        if self.recurrent {
            placement.add_layers(left, graph, links, context);
        }
        if self.carry == Carry::All {
            placement.add_all(left, model, links, context);
        }
        if self.is_wide() {
            let values = placement.readers.keys();
            placement.levels = values.map(|value| (value.clone(), u16::MAX)).collect();
        }
        placement
    }

    /// Writes all that is placed; gives the relative error of each layer's weights.
    fn write(
        &self,
        builder: &mut Builder,
        known: &Known,
        placement: &Placement,
    ) -> Result<Vec<(usize, f64)>, PassError> {
        for (value, readers) in &placement.readers {
            let rank = rank_at(known.links, &known.model.graph, readers);
            insert_pair(builder, (value, rank), &known.sites[value], readers);
        }
        for (index, rounded) in known.rounded {
            if placement.products.contains(index) {
                let site = known.site(*index);
                self.set_product(builder, known.links, *index, site, rounded.clone());
            }
        }
        let layer = |&index: &usize| {
            let error = recurrent::set_weights(builder, known.links, index, self.method())?;
            Ok((index, error))
        };
        placement.layers.iter().map(layer).collect()
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
        let dtype = rounded.weight.values.dtype();
        let quantized = builder.rounded_weight(weight.name, weight.axis, rounded.weight);
        let real = format!("{}_weight_dequantized", node.label().trim_start_matches('/'));
        let channels = weight.tensor.shape()[weight.axis];
        let zero = format!("{}_zero_point", quantized.values);
        builder.set(&zero, Tensor::zeros(dtype, &[channels]));
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

/// What runs in 8 bits.
fn say_what(plan: &mut Plan, placement: &Placement, tables: usize) {
    let (count, layers) = (placement.products.len(), placement.layers.len());
    if layers > 0 {
        plan.remark(format!(
            "{layers} recurrent layers in 8 bits: builtin runs them in integers, other runtimes in \
             float"
        ));
    }
    plan.remark(match count + layers + tables {
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

/// The rank of what convolutions among the readers read, which is that of their weights.
fn rank_at(links: &Links, graph: &Graph, readers: &[(usize, usize)]) -> usize {
    let mut nodes = readers.iter().map(|&(index, _)| &graph.nodes[index]);
    let conv = nodes.find(|node| node.is("Conv"));
    conv.and_then(|node| weight_of(links, node)).map_or(2, |weight| weight.tensor.rank())
}

/// `QuantizeLinear` and `DequantizeLinear` on a value, its channels divided before where the site
/// says so; `readers` read the result.
fn insert_pair(
    builder: &mut Builder,
    (value, rank): (&str, usize),
    site: &Site,
    readers: &[(usize, usize)],
) {
    let named = |suffix: &str| format!("{value}_{suffix}");
    let (scale, zero) = (named("scale"), named("zero_point"));
    let (quantized, dequantized) = (named("quantized"), named("dequantized"));
    let range = site.chosen.range;
    builder.set(&scale, Tensor::scalar(range.scale));
    builder.set(
        &zero,
        match u8::try_from(range.level_max) {
            Ok(_) => Tensor::scalar(range.zero_point as u8),
            Err(_) => Tensor::scalar(range.zero_point),
        },
    );
    let mut source = value.to_string();
    if let Some(divisors) = &site.divisors {
        let factors: Vec<f32> = divisors.iter().map(|s| 1.0 / s).collect();
        let (factor, smooth) = (named("smooth_factor"), named("smooth"));
        let mut shape = vec![factors.len()];
        if site.statistics.axis() == ChannelAxis::Second {
            shape.resize(rank.max(2) - 1, 1);
        }
        builder.set(&factor, Tensor::new(&shape, &factors));
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
