//! Quantization: q = clamp(round(x / scale) + `zero_point`).

mod calibrate;
mod dynamic;
mod embedding;
mod histogram;
mod importance;
mod nodes;
mod observer;
mod placement;
mod static_;
mod statistics;
mod weight;

pub(crate) use dynamic::{DynamicQuantize, OPTIONS as DYNAMIC_OPTIONS};
pub(crate) use static_::{OPTIONS as STATIC_OPTIONS, StaticQuantize};
pub use weight::{WeightRounding, quantize_channels};
