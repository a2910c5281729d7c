//! Pruning: weights that matter least become zero.

mod cut;
mod lowest;
mod magnitude;
mod pattern;
#[cfg(test)]
mod tests;
mod threshold;
mod unstructured;
mod weights;

use cut::Cut;
use lowest::{Amount, Lowest, Scope};
pub(crate) use magnitude::{MagnitudePrune, OPTIONS as MAGNITUDE_OPTIONS};
use pattern::Pattern;
pub(crate) use threshold::{OPTIONS as THRESHOLD_OPTIONS, ThresholdPrune};
pub(crate) use unstructured::{OPTIONS as UNSTRUCTURED_OPTIONS, UnstructuredPrune};
use weights::matrices;
pub(crate) use weights::prunable;
