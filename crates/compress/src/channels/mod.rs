//! Channels that can only be cut together, found from the rules of operators, and their cut.
//!
//! Every index of every axis of every tensor is a place. Rules tie places; what is tied in the end
//! goes or stays together (Fang et al., "DepGraph", 2023, arXiv:2301.12900, speaks of a dependency
//! graph). Channels that lie on the same axes are a group: one of them is as good as another.

mod cut;
mod find;
mod kind;
mod places;
mod shapes;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod ties;
mod zeros;

use serde::{Deserialize, Serialize};

pub use cut::Cut;
pub use find::ChannelGroups;

/// What the channels of a group are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelKind {
    /// Channels of convolutions.
    Conv,
    /// Columns of one matrix and rows of the next: neurons of a feed-forward network.
    Columns,
    /// Whole attention heads.
    Heads,
    /// The same place in every attention head.
    HeadDims,
    /// Hidden units of LSTM, GRU or RNN.
    Recurrent,
    /// The width of embeddings and all that is added to them.
    Width,
}

impl ChannelKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Conv => "conv",
            Self::Columns => "columns",
            Self::Heads => "heads",
            Self::HeadDims => "head-dims",
            Self::Recurrent => "recurrent",
            Self::Width => "width",
        }
    }
}

/// Channels that lie on the same axes, any of which can be cut.
#[derive(Clone, Debug)]
pub struct ChannelGroup {
    /// The node that makes them: the first that reads a weight of theirs.
    pub name: String,
    pub kind: ChannelKind,
    pub channel_count: usize,
    /// Whether the rest computes what it computed, once a channel is zero. A normalization over the
    /// channels takes other statistics of fewer.
    pub is_exact: bool,
    /// Where they lie, in the order of the graph.
    pub axes: Vec<GroupAxis>,
    /// Bytes of the constants that all channels together own.
    pub weight_bytes: u64,
    /// Multiply-accumulates, for each row or pixel, that all channels together take part in.
    pub macs: u64,
    /// Bits of the ways to cut reshapes that this group was found by.
    factors: u8,
}

/// One axis that the channels of a group lie on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupAxis {
    pub tensor: String,
    pub axis: usize,
    pub is_constant: bool,
    /// The one reader that is meant, as (node, input), where the tensor is a constant that others
    /// may read uncut.
    pub reader: Option<(usize, usize)>,
    /// Indices of each channel, one channel after the other, `per_channel` of each.
    pub indices: Vec<u32>,
    pub per_channel: usize,
    dim: usize,
}

impl GroupAxis {
    /// Where channel `channel` lies.
    pub fn of(&self, channel: usize) -> &[u32] {
        &self.indices[channel * self.per_channel..][..self.per_channel]
    }
}
