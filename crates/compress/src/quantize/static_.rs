//! Static quantization: ranges fixed by calibration, written as QDQ.
//!
//! Activations are u8 and weights symmetric i8 per output channel: the pair that runtimes have
//! their fastest kernels for.

use std::collections::BTreeMap;

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::Tensor;
use serde::Deserialize;

use super::calibrate::ranges;
use super::embedding::quantize_embeddings;
use super::nodes::{ActivationRange, Builder, weight_of};
use super::placement::Placement;
use crate::saturation::{LevelRange, level_range};
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
    saturation: Saturation,
}

/// What is done about CPUs that sum two products in 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Saturation {
    /// Weights are bounded where a pair of them could get there.
    #[default]
    Safe,
    Ignore,
}

/// Bits of a weight. With 7, no two products leave 16 bits.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "i64")]
enum WeightBits {
    Seven,
    #[default]
    Eight,
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
];

impl Pass for StaticQuantize {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        if model.opset() < 13 {
            return Err(PassError::Opset { found: model.opset(), needed: 13 });
        }
        let links = Links::new(&model.graph);
        let placement = Placement::new(&model.graph, &links, context);
        let mut builder = Builder::new(&model.graph);
        if !placement.products.is_empty() {
            let ranges = ranges(model, placement.readers.keys().cloned().collect(), context)?;
            for (value, readers) in &placement.readers {
                if let Some(range) = ranges.get(value) {
                    insert_pair(&mut builder, value, *range, readers);
                }
            }
            for &index in &placement.products {
                self.quantize_product(&mut builder, &links, index, &ranges)?;
            }
        }
        let tables =
            if self.embeddings { quantize_embeddings(&mut builder, &links, context)? } else { 0 };
        let count = placement.products.len();
        let bounding = builder.bounding;
        let mut plan = builder.finish();
        if bounding.at_risk > 0 {
            plan.remark(format!(
                "{} of {} channels could saturate 16-bit sums and were bounded, {} pairs of weights \
                 moved: every CPU gives the same integers",
                bounding.at_risk, bounding.channels, bounding.moved
            ));
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
        Ok(plan)
    }
}

/// `QuantizeLinear` and `DequantizeLinear` on a value; `readers` read the result.
fn insert_pair(
    builder: &mut Builder,
    value: &str,
    range: ActivationRange,
    readers: &[(usize, usize)],
) {
    let named = |suffix: &str| format!("{value}_{suffix}");
    let (scale, zero) = (named("scale"), named("zero_point"));
    let (quantized, dequantized) = (named("quantized"), named("dequantized"));
    builder.set(&scale, Tensor::scalar(range.scale));
    builder.set(&zero, Tensor::scalar(range.zero_point));
    let quantize = Node::new("QuantizeLinear", &quantized, &[value, &scale, &zero], &[&quantized]);
    let inputs = [quantized.as_str(), &scale, &zero];
    let dequantize = Node::new("DequantizeLinear", &dequantized, &inputs, &[&dequantized]);
    builder.add(quantize);
    builder.add(dequantize);
    for &(index, input) in readers {
        let value = dequantized.clone();
        builder.plan.push(Edit::SetInput { index, input, value });
    }
}

impl StaticQuantize {
    fn quantize_product(
        &self,
        builder: &mut Builder,
        links: &Links,
        index: usize,
        ranges: &BTreeMap<String, ActivationRange>,
    ) -> Result<(), PassError> {
        let node = &builder.graph.nodes[index];
        let Some(weight) = weight_of(links, node) else { return Ok(()) };
        let Some(range) = ranges.get(&node.inputs[0]) else { return Ok(()) };
        let level_max = match self.weight_bits {
            WeightBits::Seven => 63,
            WeightBits::Eight => 127,
        };
        let is_shared = links.uses(weight.name).len() > 1;
        let levels = (self.saturation == Saturation::Safe).then(|| match is_shared {
            true => LevelRange::ALL,
            false => level_range(links, &node.inputs[0], range.zero_point),
        });
        let quantized =
            builder.weight(weight.name, weight.tensor, weight.axis, level_max, levels)?;
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
        // Runtimes fuse a convolution or Gemm only if its bias is in integers too, on the grid of
        // the sums: scale of the input times scale of the channel.
        if let Some(bias) = node.input(2) {
            let scales: Vec<f32> =
                quantized.scales.slice::<f32>().iter().map(|scale| scale * range.scale).collect();
            quantize_bias(builder, links, (index, bias), &scales);
        }
        Ok(())
    }
}

/// A bias in i32 with the scales of the sums it is added to.
fn quantize_bias(
    builder: &mut Builder,
    links: &Links,
    (index, bias): (usize, &str),
    scales: &[f32],
) {
    let Some(tensor) = links.constant(bias).filter(|bias| bias.shape() == [scales.len()]) else {
        return;
    };
    let values = tensor.values::<f32>();
    let levels: Vec<i32> =
        values.iter().zip(scales).map(|(b, scale)| (b / scale).round_ties_even() as i32).collect();
    let base = builder.graph.nodes[index].label().trim_start_matches('/').to_string();
    let named = |suffix: &str| format!("{base}_bias_{suffix}");
    let (q, scale, zero, real) =
        (named("quantized"), named("scale"), named("zero_point"), named("dequantized"));
    builder.set(&q, Tensor::new(&[levels.len()], &levels));
    builder.set(&scale, Tensor::new(&[scales.len()], scales));
    builder.set(&zero, Tensor::new(&[scales.len()], &vec![0_i32; scales.len()]));
    let inputs = [q.as_str(), &scale, &zero];
    let dequantize =
        Node::new("DequantizeLinear", &real, &inputs, &[&real]).with_attribute("axis", 0_i64);
    builder.add(dequantize);
    builder.replaced(bias);
    builder.plan.push(Edit::SetInput { index, input: 2, value: real });
}
