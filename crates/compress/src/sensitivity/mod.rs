//! Sensitivity: what the outputs of each product lose at each sparsity of its weights.

mod allot;
mod report;

pub(crate) use allot::{Allotment, SensitivitySetting};
pub use report::{Estimate, LevelSensitivity, Sensitivity, TensorSensitivity};
