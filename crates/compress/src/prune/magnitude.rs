//! Unstructured pruning by magnitude (Han et al., 2015, arXiv:1506.02626).

use attar_graph::{Model, Plan};
use serde::Deserialize;

use super::{Amount, Lowest, Pattern, Scope};
use crate::importance::Importance;
use crate::{Context, Fraction, OptionEntry, Pass, PassError};

/// Sets the weights of least absolute value to zero.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MagnitudePrune {
    sparsity: Fraction,
    #[serde(default)]
    scope: Scope,
}

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry { key: "sparsity", default: "", help: "fraction of the weights set to zero" },
    OptionEntry { key: "scope", default: "\"tensor\"", help: super::unstructured::SCOPE_HELP },
];

impl Pass for MagnitudePrune {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let lowest = Lowest {
            amount: Amount::Sparsity(self.sparsity),
            importance: Importance::named("l1"),
            scope: self.scope,
            pattern: Pattern::Element,
            seed: 0,
        };
        lowest.plan(model, context)
    }
}
