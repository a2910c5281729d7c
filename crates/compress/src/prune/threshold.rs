//! Unstructured pruning by a threshold: Prune(W, α) = {w : I(w) ≤ α}.

use attar_graph::{Model, Plan};
use serde::Deserialize;

use super::{Amount, Lowest, Pattern, Scope};
use crate::importance::Importance;
use crate::{Context, OptionEntry, Pass, PassError};

/// Sets every weight whose importance is at most alpha to zero.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ThresholdPrune {
    alpha: f32,
    #[serde(default = "relative")]
    importance: Importance,
    #[serde(default)]
    seed: u64,
}

fn relative() -> Importance {
    Importance::named("relative")
}

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry { key: "alpha", default: "", help: "the highest importance that is removed" },
    OptionEntry {
        key: "importance",
        default: "\"relative\"",
        help: super::unstructured::IMPORTANCE_HELP,
    },
    OptionEntry { key: "seed", default: "0", help: "of whatever is drawn" },
];

impl Pass for ThresholdPrune {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        if !(self.alpha >= 0.0 && self.alpha.is_finite()) {
            return Err(PassError::Settings {
                pass: "prune.threshold",
                message: format!("`alpha` is {}; it is a number from 0", self.alpha),
                known: "alpha, importance, seed".into(),
            });
        }
        let lowest = Lowest {
            amount: Amount::UpTo(self.alpha),
            importance: self.importance,
            scope: Scope::Tensor,
            pattern: Pattern::Element,
            seed: self.seed,
        };
        lowest.plan(model, context)
    }
}
