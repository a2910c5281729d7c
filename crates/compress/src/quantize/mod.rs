//! Quantization: q = clamp(round(x / scale) + `zero_point`).

mod attention;
mod aware;
mod bias;
pub(crate) mod calibrate;
mod descent;
mod dynamic;
mod dynamic_lstm;
mod embedding;
mod equalize;
pub(crate) mod gptq;
pub(crate) mod gram;
mod histogram;
mod importance;
mod integer;
mod keep_float;
mod mixed;
mod nodes;
mod observer;
mod output_error;
mod placement;
mod product;
mod qoperator;
mod record;
mod recurrent;
mod safe_weight;
mod sites;
mod smooth;
mod static_;
pub(crate) mod statistics;
mod weight;
mod weights;

pub use aware::{AWARE_OPTIONS, AwarePlan, AwareSettings, plan_aware, plan_integers};
pub(crate) use dynamic::{DynamicQuantize, OPTIONS as DYNAMIC_OPTIONS};
pub(crate) use embedding::{EmbeddingQuantize, Lookup, OPTIONS as EMBEDDING_OPTIONS, lookups};
pub(crate) use equalize::Equalize;
pub(crate) use integer::IntegerOnly;
pub(crate) use mixed::{MixedQuantize, OPTIONS as MIXED_OPTIONS};
pub(crate) use qoperator::QOperator;
pub use record::{ProductRecord, QuantizationRecord, RangeRecord};
pub use static_::fold_normalizations;
pub(crate) use static_::{OPTIONS as STATIC_OPTIONS, StaticQuantize};
pub(crate) use weight::nearest_level;
pub use weight::{WeightRounding, quantize_channels};
pub(crate) use weights::{
    FLOAT8_OPTIONS, Float8Quantize, OPTIONS as WEIGHT_OPTIONS, Target, WeightQuantize, targets,
};
