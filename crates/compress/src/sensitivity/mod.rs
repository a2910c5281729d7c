//! Sensitivity: what the outputs of products lose at each sparsity of their weights, or of the
//! channels that they read.

mod allot;
mod groups;
mod predict;
mod report;
#[cfg(test)]
mod testing;

pub(crate) use allot::{Allotment, Curve, SensitivitySetting, shares};
pub use groups::group_sensitivity;
pub use predict::{SensitivityOptions, ratio, sensitivity};
pub use report::{
    Estimate, GroupSensitivity, LevelSensitivity, Measured, Sensitivity, TensorSensitivity,
};
