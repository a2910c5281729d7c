//! Quantization-aware training: a model whose products read what integers will hold, to be trained,
//! and what it becomes when it has learned.

mod bits;
mod export;
mod insert;
mod packed;
mod placed;
#[cfg(test)]
mod tests;
mod weight_scale;

use std::collections::BTreeMap;

use attar_graph::{Links, Model, Plan};
use serde::Deserialize;

use super::attention::QuantizedAttention;
use super::observer::Observer;
use super::placement::Placement;
use super::product::ScaleGrid;
use super::sites::{Calibrated, Wanted, sites};
use super::smooth::Smooth;
use crate::{Context, OptionEntry, PassError};
use bits::Bits;
pub use export::plan_integers;
use insert::Inserter;
use placed::product_bits;

/// What is quantized how finely, and what learns.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AwareSettings {
    weight_bits: Bits,
    activation_bits: Bits,
    ends_bits: Bits,
    bits: BTreeMap<String, Bits>,
    scales: Learning,
    zero_points: Learning,
    observer: Observer,
    int2: bool,
    packed: bool,
}

/// Whether a number is left as calibration found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Learning {
    Learned,
    Fixed,
}

impl Default for AwareSettings {
    fn default() -> Self {
        Self {
            weight_bits: Bits::Count(8),
            activation_bits: Bits::Count(8),
            ends_bits: Bits::Count(8),
            bits: BTreeMap::new(),
            scales: Learning::Learned,
            zero_points: Learning::Fixed,
            observer: Observer::default(),
            int2: false,
            packed: true,
        }
    }
}

/// Their reference.
pub const AWARE_OPTIONS: &[OptionEntry] = &[
    OptionEntry {
        key: "weight_bits",
        default: "8",
        help: "of weights, a scale for each output channel: 8, 7 (whose sums saturate on no CPU), 4, 3, 2, \
               \"ternary\" (−1, 0 and 1), \"binary\" (−1 and 1, the scale is the mean magnitude), or \
               32, which is float",
    },
    OptionEntry {
        key: "activation_bits",
        default: "8",
        help: "of the values that `quantize.static` quantizes: 16, 8, 4, 3, 2 or 32",
    },
    OptionEntry {
        key: "ends_bits",
        default: "8",
        help: "of the first and the last products and what they read, where fewer are asked for",
    },
    OptionEntry {
        key: "bits",
        default: "{}",
        help: "of single products, by patterns of their names: { \"/head/*\" = 8 }; a number is that of \
               what they read too",
    },
    OptionEntry {
        key: "scales",
        default: "\"learned\"",
        help: "\"learned\" with the weights (LSQ), or \"fixed\" as calibration and weights gave them",
    },
    OptionEntry {
        key: "zero_points",
        default: "\"fixed\"",
        help: "of activations: \"fixed\", or \"learned\" too (LSQ+)",
    },
    OptionEntry {
        key: "observer",
        default: "\"auto\"",
        help: "how ranges of activations are found at first, as in `quantize.static`",
    },
    OptionEntry {
        key: "packed",
        default: "true",
        help: "weights of 2 to 4 levels in whole bytes, 8 signs, 5 of three levels or 4 of four in each: a \
               table unpacks them once, when the model is loaded, and products of 8-bit activations run \
               in integers",
    },
    OptionEntry {
        key: "int2",
        default: "false",
        help: "2 to 4 levels in types of 2 bits (opset 25) instead of 4: a smaller file, which ONNX \
               Runtime 1.32 does not take where a convolution reads them",
    },
];

/// A model to be trained.
#[derive(Debug, Default)]
pub struct AwarePlan {
    /// `FakeQuantize` nodes on weights, biases and what products read.
    pub plan: Plan,
    /// Initializers that learn beside the weights.
    pub scales: Vec<String>,
}

impl AwareSettings {
    /// What types do not say of the settings.
    ///
    /// # Errors
    /// Bits that weights or activations do not have, in a sentence.
    pub fn check(&self) -> Result<(), String> {
        const WEIGHTS: &str = "8, 7, 4, 3, 2, \"ternary\", \"binary\" and 32";
        let refused = |key: &str, bits: &Bits, known: &str| {
            Err(format!("`{key}` is {bits}, expected one of {known}"))
        };
        let of_weights = [("weight_bits", &self.weight_bits), ("ends_bits", &self.ends_bits)];
        let named = self.bits.iter().map(|(pattern, bits)| (pattern.as_str(), bits));
        for (key, bits) in of_weights.into_iter().chain(named) {
            if bits.weight_grid().is_none() && *bits != Bits::Float {
                return refused(key, bits, WEIGHTS);
            }
        }
        let bits = &self.activation_bits;
        if bits.activation_levels().is_none() && *bits != Bits::Float || *bits == Bits::Count(7) {
            return refused("activation_bits", bits, "16, 8, 4, 3, 2 and 32");
        }
        Ok(())
    }

    /// The operator set in which there are integers of all these sizes.
    pub fn opset(&self) -> i64 {
        let named = self.bits.values();
        let all = [&self.weight_bits, &self.activation_bits].into_iter().chain(named);
        all.map(|bits| bits.opset(self.int2, self.packed)).max().unwrap_or(0)
    }
}

/// Puts a fake quantization on every value that `quantize.static` would quantize, and on weights.
///
/// # Errors
/// A model of too old an operator set, calibration data that is missing or not finite, or a pattern
/// that names no product.
pub fn plan_aware(
    model: &Model,
    settings: &AwareSettings,
    context: &Context,
) -> Result<AwarePlan, PassError> {
    let needed = settings.opset();
    if model.opset() < needed {
        return Err(PassError::Opset { found: model.opset(), needed });
    }
    let links = Links::new(&model.graph);
    let mut placement = Placement::new(&model.graph, &links, context);
    placement.add_attention(&model.graph, &links, context, QuantizedAttention::Auto);
    let bits = product_bits(&model.graph, &placement, settings)?;
    placed::place(&mut placement, &bits, settings);
    let wanted = Wanted {
        observer: settings.observer,
        smooth: Smooth::Off,
        moments: false,
        level_max: i8::MAX,
        grid: ScaleGrid::Any,
        ranges: &[],
    };
    let calibrated = if placement.readers.is_empty() {
        Calibrated::default()
    } else {
        sites(model, &links, &placement, wanted, context)?
    };
    let mut inserter = Inserter::new(model, &links, &calibrated.sites, settings);
    for (value, readers) in &placement.readers {
        inserter.quantize_value(value, &placement, readers);
    }
    for &index in &placement.products {
        inserter.quantize_product(index, bits[&index].weight)?;
    }
    Ok(inserter.finish(&placement))
}
