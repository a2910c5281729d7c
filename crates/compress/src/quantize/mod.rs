//! Quantization: q = clamp(round(x / scale) + `zero_point`).

mod attention;
mod calibrate;
mod dynamic;
mod embedding;
mod nodes;
mod placement;
mod static_;
mod weight;

pub(crate) use dynamic::{DynamicQuantize, OPTIONS as DYNAMIC_OPTIONS};
pub(crate) use static_::{OPTIONS as STATIC_OPTIONS, StaticQuantize};
pub use weight::{WeightRounding, quantize_channels};
