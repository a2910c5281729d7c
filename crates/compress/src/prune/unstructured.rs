//! Unstructured pruning by any importance, to a sparsity: single weights, blocks, or N:M.

use attar_graph::{Model, Plan};
use serde::Deserialize;

use super::{Amount, Lowest, Pattern, Scope};
use crate::importance::Importance;
use crate::sensitivity::SensitivitySetting;
use crate::{Context, Fraction, OptionEntry, Pass, PassError};

/// Sets the weights of least importance to zero.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnstructuredPrune {
    sparsity: Option<Fraction>,
    #[serde(default = "absolute")]
    importance: Importance,
    #[serde(default)]
    scope: Scope,
    #[serde(default)]
    pattern: Pattern,
    #[serde(default)]
    sensitivity: SensitivitySetting,
    #[serde(default)]
    seed: u64,
}

fn absolute() -> Importance {
    Importance::named("l1")
}

pub(crate) const SPARSITY_HELP: &str =
    "fraction of the weights set to zero; N:M says it itself, as 2:4 half";
pub(crate) const IMPORTANCE_HELP: &str = "which weights matter: \"l1\", \"l2\", \"relative\", \
     \"activation\", \"taylor\", \"taylor2\", \"loss\" or \"random\", see below";
pub(crate) const SCOPE_HELP: &str = "\"tensor\": that fraction of each tensor; \"output\": of the \
     weights of each output; \"global\": of all tensors ranked together; \"normalized\": so, each \
     tensor's importances divided by their mean";
pub(crate) const SENSITIVITY_HELP: &str = "file of `attar sensitivity --json`: each tensor gets \
     the sparsity of least error for the same fraction of all; \"\" for none";

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry { key: "sparsity", default: "0.5", help: SPARSITY_HELP },
    OptionEntry { key: "importance", default: "\"l1\"", help: IMPORTANCE_HELP },
    OptionEntry { key: "scope", default: "\"tensor\"", help: SCOPE_HELP },
    OptionEntry {
        key: "pattern",
        default: "\"element\"",
        help: "\"element\"; N:M as \"2:4\", N of every M successive inputs stay; or blocks of \
               outputs by inputs, as \"1x4\" or \"16x1\"",
    },
    OptionEntry { key: "sensitivity", default: "\"\"", help: SENSITIVITY_HELP },
    OptionEntry { key: "seed", default: "0", help: "of whatever is drawn" },
];

/// The sparsity asked for, or that of the pattern.
///
/// # Errors
/// Where the two contradict each other.
pub(crate) fn sparsity(
    pass: &'static str,
    given: Option<Fraction>,
    pattern: Pattern,
) -> Result<Fraction, PassError> {
    match (pattern.sparsity(), given) {
        (None, given) => Ok(given.unwrap_or(Fraction::HALF)),
        (Some(own), Some(given)) if (own - given.get()).abs() > 1e-9 => Err(contradiction(
            pass,
            format!("`pattern` {pattern} makes a sparsity of {own}, and {} is given", given.get()),
        )),
        (Some(_), _) => Ok(Fraction::HALF),
    }
}

pub(crate) fn contradiction(pass: &'static str, message: String) -> PassError {
    let options = crate::pass_entry(pass).map_or(&[][..], |entry| entry.options);
    let known = options.iter().map(|option| option.key).collect::<Vec<_>>().join(", ");
    PassError::Settings { pass, message, known }
}

impl Pass for UnstructuredPrune {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let fail = |message: &str| Err(contradiction("prune.unstructured", message.into()));
        let sparsity = sparsity("prune.unstructured", self.sparsity, self.pattern)?;
        if self.scope == Scope::Output && self.pattern != Pattern::Element {
            return fail("scope \"output\" is for single weights: `pattern` \"element\"");
        }
        if !self.sensitivity.is_empty()
            && (self.scope != Scope::Tensor || self.pattern.sparsity().is_some())
        {
            return fail(
                "`sensitivity` gives each tensor its sparsity: no other scope, and no N:M",
            );
        }
        let allotted = self.sensitivity.allotted(model, context, sparsity)?;
        let lowest = Lowest {
            amount: match &allotted {
                Some(allotted) => Amount::Allotted(allotted),
                None => Amount::Sparsity(sparsity),
            },
            importance: self.importance,
            scope: self.scope,
            pattern: self.pattern,
            seed: self.seed,
        };
        lowest.plan(model, context)
    }
}
