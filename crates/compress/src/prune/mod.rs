//! Pruning: weights that matter least become zero.

mod magnitude;

pub(crate) use magnitude::{MagnitudePrune, OPTIONS as MAGNITUDE_OPTIONS};
