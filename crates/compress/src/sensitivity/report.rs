//! What was found, as it is written and read.

use serde::{Deserialize, Serialize};

use crate::ChannelKind;

/// A number with its 95 % interval over the examples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// Every level that any of them has, in the order of those that have most.
pub fn levels<'a>(rows: impl Iterator<Item = &'a [LevelSensitivity]>) -> Vec<Level> {
    let longest = rows.max_by_key(|levels| levels.len()).unwrap_or_default();
    longest.iter().map(|level| level.level).collect()
}

/// Of every tensor that can be pruned, in file order, or of every group of channels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorSensitivity>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupSensitivity>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupSensitivity {
    /// The node that makes the channels. Groups of several kinds may have the same.
    pub name: String,
    pub kind: ChannelKind,
    /// As that of a tensor.
    pub block: String,
    pub channel_count: usize,
    /// By rising part of the channels cut; none where no product reads them.
    pub levels: Vec<LevelSensitivity>,
}

impl GroupSensitivity {
    /// The name with the kind, which no other group has.
    pub fn title(&self) -> String {
        format!("{} ({})", self.name, self.kind.name())
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorSensitivity {
    pub name: String,
    /// The node that multiplies with it, the first of several.
    pub node: String,
    pub op_type: String,
    /// The part of the model that the node belongs to: of `/encoder/layer.0/…`, `encoder/layer.0`.
    pub block: String,
    pub element_count: usize,
    /// By rising sparsity, or falling bits.
    pub levels: Vec<LevelSensitivity>,
}

/// What is done to a tensor or a group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// This part of the weights, or channels, goes.
    Sparsity(f64),
    /// Weights are rounded to so many bits; 16 is f16.
    Bits(u32),
}

impl Level {
    /// The part that goes.
    pub(crate) fn sparsity(self) -> Option<f64> {
        match self {
            Self::Sparsity(part) => Some(part),
            Self::Bits(_) => None,
        }
    }
}

/// One tensor or group at one level, all others as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelSensitivity {
    /// In JSON `sparsity` or `bits`.
    #[serde(flatten)]
    pub level: Level,
    /// ‖X(W − Ŵ)‖ / ‖XW‖ of the product itself, or of those that read the group.
    pub error: Estimate,
    /// ‖ŷ − y‖ / ‖y‖ of the model's outputs, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error: Option<Estimate>,
    /// By how much the data set's metric changes, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Estimate>,
}

/// What was measured of a model of which one tensor or group is pruned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// ‖ŷ − y‖ / ‖y‖ of the outputs.
    pub output_error: Option<Estimate>,
    /// Change of the data set's metric.
    pub metric: Option<Estimate>,
}
