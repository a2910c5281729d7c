//! Pruning: weights that matter least become zero, channels go.

mod channels;
mod magnitude;
mod refit;
mod score;

pub(crate) use channels::{ChannelPrune, OPTIONS as CHANNEL_OPTIONS};
pub(crate) use magnitude::{MagnitudePrune, OPTIONS as MAGNITUDE_OPTIONS};
