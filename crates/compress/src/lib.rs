//! Passes: each reads a model and returns a plan. Names no particular runtime and reads no file.

mod cleanup;
mod exclude;
mod fuse;
mod pass;
mod prune;
mod quantize;
mod types;

pub use exclude::Exclude;
pub use pass::{Calibration, Context, OptionEntry, PASSES, Pass, PassEntry, PassError, pass_entry};
pub use quantize::{WeightRounding, quantize_channels};
pub use types::Fraction;
