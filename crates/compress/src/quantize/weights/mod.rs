//! Weight-only quantization: weights in a few bits, by blocks of inputs; what is computed stays
//! float.

mod float8;
mod form;
mod grid;
mod hqq;
mod round;
mod sequence;
mod target;
#[cfg(test)]
mod tests;

use attar_graph::{Links, Model, Plan};
use attar_tensor::Tensor;
use serde::Deserialize;

pub(crate) use self::float8::{FLOAT8_OPTIONS, Float8Quantize};
pub(crate) use self::form::Form;
pub(crate) use self::grid::{Grid, HALF_MIN, Levels, halved};
use self::round::Rounder;
pub(crate) use self::round::{Method, by_moments};
pub(crate) use self::target::{Target, targets};
use super::nodes::Builder;
use super::output_error::output_errors;
use super::record::QuantizationRecord;
use super::static_::default_true;
use crate::{Context, OptionEntry, Pass, PassError};

/// Weights of products, convolutions and recurrent layers in 8, 4 or 2 bits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WeightQuantize {
    #[serde(default)]
    bits: Bits,
    #[serde(default)]
    block: Block,
    #[serde(default = "default_true")]
    zero_points: bool,
    #[serde(default)]
    rounding: Rounding,
    #[serde(default = "default_true")]
    sequential: bool,
    #[serde(default)]
    awq: bool,
    #[serde(default)]
    scale_type: ScaleType,
    #[serde(default)]
    form: Form,
}

/// What scales of blocks are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ScaleType {
    /// Half the bytes, where f16 holds them; f32 elsewhere.
    #[default]
    F16,
    F32,
}

/// Bits of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
struct Bits(u32);

impl Default for Bits {
    fn default() -> Self {
        Self(4)
    }
}

impl TryFrom<i64> for Bits {
    type Error = String;

    fn try_from(bits: i64) -> Result<Self, String> {
        match bits {
            2 | 4 | 8 => Ok(Self(bits as u32)),
            _ => Err(format!("bits is {bits}, expected 8, 4 or 2")),
        }
    }
}

/// Inputs that share a scale; `None` for all of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub(crate) struct Block(pub(crate) Option<usize>);

impl Default for Block {
    fn default() -> Self {
        Self(Some(64))
    }
}

impl TryFrom<i64> for Block {
    type Error = String;

    fn try_from(block: i64) -> Result<Self, String> {
        match usize::try_from(block) {
            Ok(0) => Ok(Self(None)),
            Ok(block) if block >= 16 && block.is_power_of_two() => Ok(Self(Some(block))),
            _ => Err(format!("block is {block}, expected 0 or a power of 2 from 16 on")),
        }
    }
}

/// How weights are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rounding {
    /// By second moments where there is calibration data, else as [`Mse`](Self::Mse).
    #[default]
    Auto,
    /// On the grid over the range of each block.
    Nearest,
    /// On the grid of least squared error.
    Mse,
    /// On the grid of least half-quadratic error.
    Hqq,
    Gptq,
}

pub(crate) const SCALE_TYPE: OptionEntry = OptionEntry {
    key: "scale_type",
    default: "\"f16\"",
    help: "what the scales of blocks are stored as: \"f16\", which runtimes make f32 while they load, or \
           \"f32\"",
};

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry { key: "bits", default: "4", help: "of a weight: 8, 4 or 2" },
    OptionEntry {
        key: "block",
        default: "64",
        help: "successive inputs of an output that share a scale: a power of 2 from 16 on, or 0 for \
               all; convolutions have one scale per output",
    },
    OptionEntry {
        key: "zero_points",
        default: "true",
        help: "a zero point for each scale; false for levels that are symmetric around 0",
    },
    OptionEntry {
        key: "rounding",
        default: "\"auto\"",
        help: "\"gptq\", by second moments of inputs from calibration data; without data \"mse\", on the grid \
               of least squared error, \"hqq\", half-quadratic, or \"nearest\", on the grid over the range; or \
               \"auto\", the first where there is data, else the second",
    },
    OptionEntry {
        key: "sequential",
        default: "true",
        help: "with \"gptq\", weights are rounded in the order of the graph, each to make up for what \
               rounding those before it did",
    },
    OptionEntry {
        key: "awq",
        default: "false",
        help: "channels of inputs that are large have their weights scaled up before they are rounded, \
               where that loses less (AWQ); a multiplication each while running",
    },
    SCALE_TYPE,
    OptionEntry {
        key: "form",
        default: "\"qdq\"",
        help: "\"qdq\", standard ONNX (DequantizeLinear), which ONNX Runtime turns into its own; or \
               \"nbits\", that of ONNX Runtime (MatMulNBits), for models of any operator set",
    },
];

/// The first operator sets with scales by blocks and 4 bits, and with 2 bits.
const BLOCKS_OPSET: i64 = 21;
const TWO_BITS_OPSET: i64 = 25;
const AXIS_OPSET: i64 = 13;

/// The first operator set that has what is written.
pub(crate) fn opset_min(bits: u32, block: Block, form: Form) -> i64 {
    match (bits, block.0) {
        (2, _) => TWO_BITS_OPSET,
        (8, None) => AXIS_OPSET,
        _ if form == Form::NBits => AXIS_OPSET,
        _ => BLOCKS_OPSET,
    }
}

impl Pass for WeightQuantize {
    fn opset_min(&self) -> i64 {
        opset_min(self.bits.0, self.block, self.form)
    }

    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        Ok(self.plan_recorded(model, context)?.0)
    }

    fn plan_recorded(
        &self,
        model: &Model,
        context: &Context,
    ) -> Result<(Plan, Option<QuantizationRecord>), PassError> {
        let (found, needed) = (model.opset(), self.opset_min());
        if found < needed && !model.graph.nodes.is_empty() {
            return Err(PassError::Opset { found, needed });
        }
        let links = Links::new(&model.graph);
        let targets = targets(&model.graph, &links, context, self.bits.0);
        let has_data = context.calibration.is_some();
        let rounding = match self.rounding {
            Rounding::Auto if has_data => Rounding::Gptq,
            Rounding::Auto => Rounding::Mse,
            rounding => rounding,
        };
        if !has_data && !targets.is_empty() && (rounding == Rounding::Gptq || self.awq) {
            return Err(PassError::NoCalibration);
        }
        let method = Method {
            has_zero_points: self.zero_points,
            block: self.block.0,
            rounding,
            scales_channels: self.awq,
            scale_type: self.scale_type,
            is_sequential: self.sequential,
        };
        let mut builder = Builder::new(&model.graph);
        let written = write(&mut builder, model, &targets, method, self.form, context, &[])?;
        let Written { mut record, batch_count, remark } = written;
        let mut plan = builder.finish();
        remark.into_iter().for_each(|remark| plan.remark(remark));
        self.remark(&mut plan, rounding, &targets);
        if batch_count > 0 && !record.products.is_empty() {
            let values = record.values(&model.graph);
            let errors = output_errors(model, &plan, &values, batch_count, context)?;
            record.measured(&model.graph, &errors);
        }
        record.remarks().into_iter().for_each(|remark| plan.remark(remark));
        Ok((plan, Some(record).filter(|record| !record.products.is_empty())))
    }
}

/// What was written of weights, and how much of the calibration data was seen for it.
pub(crate) struct Written {
    pub(crate) record: QuantizationRecord,
    pub(crate) batch_count: usize,
    /// What the user should know of the data.
    pub(crate) remark: Option<String>,
}

/// Rounds weights and puts their levels into the graph, in which the constants of `replaced` are no
/// longer what they were.
///
/// # Errors
/// Weights that are not finite, or data that does not fit.
pub(crate) fn write(
    builder: &mut Builder,
    model: &Model,
    targets: &[Target],
    method: Method,
    form: Form,
    context: &Context,
    replaced: &[(String, Tensor)],
) -> Result<Written, PassError> {
    let mut rounder = Rounder::new(model, method, context, replaced);
    let rounded = rounder.all(targets)?;
    let mut record = QuantizationRecord::default();
    for (target, rounded) in targets.iter().zip(&rounded) {
        form::write(builder, target, rounded, form);
        record.products.extend(rounded.records(&model.graph, target));
    }
    form::write_divisions(builder, &rounder.divisors);
    Ok(Written { record, batch_count: rounder.batch_count, remark: rounder.remark })
}

impl WeightQuantize {
    fn remark(&self, plan: &mut Plan, rounding: Rounding, targets: &[Target]) {
        if targets.is_empty() {
            plan.remark("nothing to quantize: no product with a constant f32 weight");
            return;
        }
        let how = match rounding {
            Rounding::Gptq => "by second moments (GPTQ)",
            Rounding::Mse => "with the least squared error, without data",
            Rounding::Hqq => "half-quadratically (HQQ), without data",
            _ => "to the nearest level",
        };
        let weights: usize = targets.iter().map(|target| target.tensor.element_count()).sum();
        plan.remark(format!(
            "{} tensors, {weights} weights, in {} bits, rounded {how}",
            targets.len(),
            self.bits.0
        ));
        let others = targets.iter().filter(|target| !target.is_matrix_product).count();
        if others > 0 {
            plan.remark(format!(
                "{others} of them belong to convolutions or recurrent layers: a runtime without a \
                 kernel for such weights makes them float again in every run"
            ));
        }
    }
}
