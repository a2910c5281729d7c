//! Fusing operators into their neighbours, in standard ONNX.

use attar_graph::{Model, Plan};
use serde::Deserialize;

use crate::{Context, Pass, PassError};

/// Folds `BatchNormalization` into convolutions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchNormFuse {}

impl Pass for BatchNormFuse {
    fn plan(&self, model: &Model, _: &Context) -> Result<Plan, PassError> {
        Ok(attar_ops::fuse::batch_normalization::plan(model))
    }
}
