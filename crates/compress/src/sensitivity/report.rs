//! What was found, as it is written and read.

use serde::{Deserialize, Serialize};

/// A number with its 95 % interval over the examples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// Of every tensor that can be pruned, in file order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    pub tensors: Vec<TensorSensitivity>,
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
    /// By rising sparsity.
    pub levels: Vec<LevelSensitivity>,
}

/// One tensor at one sparsity, all others as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelSensitivity {
    pub sparsity: f64,
    /// ‖X(W − Ŵ)‖ / ‖XW‖ of the product itself.
    pub error: Estimate,
    /// ‖ŷ − y‖ / ‖y‖ of the model's outputs, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error: Option<Estimate>,
    /// By how much the data set's metric changes, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Estimate>,
}

/// What was measured of a model that one tensor of is pruned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// ‖ŷ − y‖ / ‖y‖ of the outputs.
    pub output_error: Option<Estimate>,
    /// Change of the data set's metric.
    pub metric: Option<Estimate>,
}
