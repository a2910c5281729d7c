//! Sensitivity: what the outputs of each product lose at each sparsity of its weights.

mod allot;
mod predict;
mod report;

pub(crate) use allot::{Allotment, SensitivitySetting};
pub use predict::{SensitivityOptions, ratio, sensitivity};
pub use report::{Estimate, LevelSensitivity, Measured, Sensitivity, TensorSensitivity};
