//! Sensitivity: what the outputs of products lose at each sparsity of their weights, or of the
//! channels that they read, or with so many bits for each weight.

mod allot;
mod bits;
mod groups;
mod predict;
mod reach;
mod report;
#[cfg(test)]
mod testing;

pub(crate) use allot::{Allotment, Curve, SensitivitySetting, hull, shares};
pub use bits::{BitsOptions, bits_sensitivity};
pub(crate) use bits::{Format, Predicted, predicted_errors, reach_of_bits};
pub use groups::group_sensitivity;
pub use predict::{SensitivityOptions, ratio, sensitivity};
pub use report::{
    Estimate, GroupSensitivity, Level, LevelSensitivity, Measured, Sensitivity, TensorSensitivity,
    levels,
};
