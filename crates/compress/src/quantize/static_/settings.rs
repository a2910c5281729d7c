//! What the settings of `quantize.static` are made of, and their reference.

use std::collections::BTreeMap;

use attar_graph::NamePatterns;
use serde::Deserialize;

use crate::OptionEntry;

/// Bits of a weight. With 7, no two products leave 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub(super) enum WeightBits {
    Seven,
    #[default]
    Eight,
    Sixteen,
}

/// Bits of an activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub(super) enum ActivationBits {
    #[default]
    Eight,
    Sixteen,
}

/// What stays in 8 bits between products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Carry {
    /// What convolutions produce.
    #[default]
    Images,
    All,
}

impl TryFrom<i64> for ActivationBits {
    type Error = String;

    fn try_from(bits: i64) -> Result<Self, String> {
        match bits {
            8 => Ok(Self::Eight),
            16 => Ok(Self::Sixteen),
            _ => Err(format!("activation_bits is {bits}, expected 8 or 16")),
        }
    }
}

/// Ends that are given for values, by the patterns of their names.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "BTreeMap<String, [f32; 2]>")]
pub(super) struct GivenRanges(pub(super) Vec<(NamePatterns, [f32; 2])>);

impl TryFrom<BTreeMap<String, [f32; 2]>> for GivenRanges {
    type Error = String;

    fn try_from(ranges: BTreeMap<String, [f32; 2]>) -> Result<Self, String> {
        let entry = |(name, [low, high]): (String, [f32; 2])| {
            if !(low.is_finite() && high.is_finite() && low < high) {
                return Err(format!("the range of `{name}` is {low} to {high}"));
            }
            Ok((NamePatterns::new(vec![name]), [low, high]))
        };
        Ok(Self(ranges.into_iter().map(entry).collect::<Result<_, _>>()?))
    }
}

impl WeightBits {
    pub(super) fn level_max(self) -> i8 {
        match self {
            Self::Seven => 63,
            Self::Eight | Self::Sixteen => 127,
        }
    }
}

impl TryFrom<i64> for WeightBits {
    type Error = String;

    fn try_from(bits: i64) -> Result<Self, String> {
        match bits {
            7 => Ok(Self::Seven),
            8 => Ok(Self::Eight),
            16 => Ok(Self::Sixteen),
            _ => Err(format!("weight_bits is {bits}, expected 7, 8 or 16")),
        }
    }
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
        key: "recurrent",
        default: "true",
        help: "LSTM, GRU and RNN layers in 8 bits too, where their states stay within ±1: in integers \
               on builtin, in float on other runtimes",
    },
    OptionEntry {
        key: "weight_bits",
        default: "8",
        help: "8; 7 for half as many levels in every channel; or 16, each to the nearest level",
    },
    OptionEntry {
        key: "activation_bits",
        default: "8",
        help: "8, or 16 for what 8 bits cannot hold (opset 21; builtin and ONNX Runtime then compute in \
               float)",
    },
    OptionEntry {
        key: "carry",
        default: "\"images\"",
        help: "what is in 8 bits between products: \"images\", what convolutions produce, where runtimes \
               gain by it; \"all\", every sum, product and function, for `quantize.integer`",
    },
    OptionEntry {
        key: "scales",
        default: "\"any\"",
        help: "\"any\", or \"power-of-two\" for hardware that shifts instead of multiplying",
    },
    OptionEntry {
        key: "ranges",
        default: "{}",
        help: "ends of activations that are given, by name or pattern: `ranges = { \"x\" = [-1, 1] }`",
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
        key: "equalize",
        default: "true",
        help: "channels of what convolutions hand on are brought to one range, by factors in the weights \
               around them, which costs nothing while running",
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
        help: "products and layers that stay in float: \"measured\", those that alone change the outputs \
               by more than 5 %, and those of most error for their work until the rest together is \
               within 20 %, or within a share that is given, as 0.1; \"auto\", so in small models, in \
               others those with four times as much of all squared error as of all work, if the \
               outputs gain as much; { time = 0.5 }, as many as leave the model within half of its time, \
               those of most error for their work; a whole number, so many of most error; \"off\"",
    },
];
