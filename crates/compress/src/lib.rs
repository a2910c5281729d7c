//! Passes: each reads a model and returns a plan. Names no particular runtime and reads no file.

mod channels;
mod cleanup;
mod fuse;
mod half;
mod importance;
mod layout;
mod moments;
mod parallel;
mod pass;
mod prune;
mod quantize;
mod reference;
pub mod saturation;
mod sensitivity;
mod staged;
mod types;
mod unroll;

/// Names that passes leave alone.
pub use attar_graph::NamePatterns as Exclude;
#[cfg(any(test, feature = "testing"))]
pub use channels::testing;
pub use channels::{ChannelGroup, ChannelGroups, ChannelKind, Cut, GroupAxis};
pub use importance::{IMPORTANCES, ImportanceEntry};
pub use pass::{
    Calibration, Context, OptionEntry, PASSES, Pass, PassEntry, PassError, Timing, pass_entry,
};
pub use prune::{KeptTokens, plan_vocabulary};
pub use quantize::{
    AWARE_OPTIONS, AwarePlan, AwareSettings, ProductRecord, QuantizationRecord, RangeRecord,
    WeightRounding, fold_normalizations, plan_aware, plan_integers, quantize_channels,
};
pub use sensitivity::{
    BitsOptions, Estimate, GroupSensitivity, Level, LevelSensitivity, Measured, Sensitivity,
    SensitivityOptions, TensorSensitivity, bits_sensitivity, group_sensitivity, levels, ratio,
    sensitivity,
};
pub use types::Fraction;
