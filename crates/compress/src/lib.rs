//! Passes: each reads a model and returns a plan. Names no particular runtime and reads no file.

mod channels;
mod cleanup;
mod fuse;
mod pass;
mod prune;
mod quantize;
pub mod saturation;
mod types;

/// Names that passes leave alone.
pub use attar_graph::NamePatterns as Exclude;
pub use channels::{ChannelGroup, ChannelGroups, ChannelKind, Cut, GroupAxis};
pub use pass::{Calibration, Context, OptionEntry, PASSES, Pass, PassEntry, PassError, pass_entry};
pub use quantize::{
    ProductRecord, QuantizationRecord, RangeRecord, WeightRounding, quantize_channels,
};
pub use types::Fraction;
