//! Pruning: weights that matter least become zero, channels go.

mod blocks;
mod channels;
mod compensate;
mod cut;
mod lowest;
mod magnitude;
mod obs;
mod output;
mod pattern;
mod refit;
mod score;
mod step_back;
#[cfg(test)]
mod tests;
mod threshold;
mod unstructured;
mod vocabulary;
mod weights;

pub(crate) use blocks::{BlockPrune, OPTIONS as BLOCK_OPTIONS};
pub(crate) use channels::{ChannelPrune, OPTIONS as CHANNEL_OPTIONS};
pub(crate) use cut::Cut;
use lowest::{Amount, Lowest, Scope};
pub(crate) use magnitude::{MagnitudePrune, OPTIONS as MAGNITUDE_OPTIONS};
pub(crate) use obs::{OPTIONS as OBS_OPTIONS, ObsPrune};
pub(crate) use output::{OPTIONS as OUTPUT_OPTIONS, OutputPrune};
use pattern::Pattern;
pub(crate) use score::{channel_scores, least_first};
pub(crate) use threshold::{OPTIONS as THRESHOLD_OPTIONS, ThresholdPrune};
pub(crate) use unstructured::{OPTIONS as UNSTRUCTURED_OPTIONS, UnstructuredPrune};
pub use vocabulary::{KeptTokens, plan_vocabulary};
use weights::matrices;
pub(crate) use weights::prunable;
