//! Gradual pruning: how, and the table of importances that it goes by.

use serde::{Deserialize, Serialize};

use crate::{Span, TrainError};

/// Weights become zero while the others are trained (Zhu and Gupta, 2017, arXiv:1710.01878): at
/// step t from t₀ to t₁ a sparsity of s₁ + (s₀ − s₁)·(1 − (t − t₀)/(t₁ − t₀))³.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneOptions {
    /// The sparsity at the end.
    pub sparsity: f64,
    /// One of [`PRUNE_IMPORTANCES`].
    #[serde(default = "first_importance")]
    pub importance: String,
    #[serde(default)]
    pub scope: PruneScope,
    #[serde(default)]
    pub start: Span,
    /// The last step that changes which weights are zero.
    #[serde(default = "three_quarters")]
    pub end: Span,
    /// Steps from one change to the next.
    #[serde(default = "often")]
    pub every: u64,
    /// Of the weights that remain, the share that at first gives its place, at each change, to
    /// pruned ones of greatest gradient (Evci et al., "`RigL`", 2020, arXiv:1911.11134); it falls to
    /// nothing like a cosine.
    #[serde(default)]
    pub regrow: f64,
    /// Patterns of weights to leave whole.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// Which weights compete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PruneScope {
    #[default]
    Tensor,
    Global,
}

/// An importance that is known while training.
#[derive(Clone, Copy)]
pub struct PruneImportance {
    pub name: &'static str,
    pub summary: &'static str,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Absolute,
    Relative,
    Taylor,
    Movement,
    Random,
}

/// Every importance of gradual pruning.
pub const PRUNE_IMPORTANCES: &[PruneImportance] = &[
    PruneImportance { name: "l1", summary: "|w|", kind: Kind::Absolute },
    PruneImportance {
        name: "relative",
        summary: "|w| over the sum of |w| of its tensor",
        kind: Kind::Relative,
    },
    PruneImportance { name: "taylor", summary: "|w·g|, averaged over steps", kind: Kind::Taylor },
    PruneImportance {
        name: "movement",
        summary: "Σ −w·g over steps: weights that move away from zero stay",
        kind: Kind::Movement,
    },
    PruneImportance { name: "random", summary: "drawn evenly, as a control", kind: Kind::Random },
];

fn first_importance() -> String {
    PRUNE_IMPORTANCES[0].name.into()
}

fn three_quarters() -> Span {
    Span::Fraction(0.75)
}

fn often() -> u64 {
    20
}

/// When masks change, and how far: for one length of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Due {
    pub(crate) sparsity: f64,
    /// Of the weights that remain, those that give their place.
    pub(crate) regrow: f64,
}

impl PruneOptions {
    pub fn to(sparsity: f64) -> Self {
        Self {
            sparsity,
            importance: first_importance(),
            scope: PruneScope::default(),
            start: Span::default(),
            end: three_quarters(),
            every: often(),
            regrow: 0.0,
            exclude: Vec::new(),
        }
    }

    /// # Errors
    /// [`TrainError::Settings`] for a number out of its range, [`TrainError::Unknown`] for an
    /// importance that there is not.
    pub(crate) fn kind(&self) -> Result<Kind, TrainError> {
        let wrong = |message: &str| {
            let known = "sparsity, importance, scope, start, end, every, regrow, exclude".into();
            Err(TrainError::Settings { of: "pruning".into(), message: message.into(), known })
        };
        if !(0.0..1.0).contains(&self.sparsity) {
            return wrong("`sparsity` is from 0 up to, but not, 1");
        }
        if !(0.0..1.0).contains(&self.regrow) {
            return wrong("`regrow` is from 0 up to, but not, 1");
        }
        let found = PRUNE_IMPORTANCES.iter().find(|entry| entry.name == self.importance);
        let known = || PRUNE_IMPORTANCES.iter().map(|entry| entry.name).collect::<Vec<_>>();
        let unknown = || TrainError::Unknown {
            what: "importance of gradual pruning",
            name: self.importance.clone(),
            known: known().join(", "),
        };
        found.map(|entry| entry.kind).ok_or_else(unknown)
    }

    /// The first and the last step that change masks, from 0, in a run of `step_count` steps.
    pub(crate) fn bounds(&self, step_count: u64) -> (u64, u64) {
        let end = self.end.steps(step_count).min(step_count.saturating_sub(1));
        (self.start.steps(step_count).min(end), end)
    }

    /// What is due at `step`, from 0, if anything is.
    pub(crate) fn due(&self, step: u64, step_count: u64, sparsity_before: f64) -> Option<Due> {
        let (start, end) = self.bounds(step_count);
        let is_due = step == end
            || (start..end).contains(&step) && (step - start).is_multiple_of(self.every.max(1));
        if !is_due {
            return None;
        }
        let length = (end - start).max(1) as f64;
        let done = if step == end { 1.0 } else { (step - start) as f64 / length };
        let left = (1.0 - done).powi(3);
        let sparsity = self.sparsity + (sparsity_before.min(self.sparsity) - self.sparsity) * left;
        let regrow = 0.5 * self.regrow * (1.0 + (std::f64::consts::PI * done).cos());
        Some(Due { sparsity, regrow })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sparsity_rises_fast_and_then_slowly_to_its_end() {
        let mut options = PruneOptions::to(0.9);
        (options.start, options.end, options.every) = (Span::Steps(10), Span::Steps(30), 5);
        let due: Vec<(u64, f64)> =
            (0..40).filter_map(|step| Some((step, options.due(step, 40, 0.0)?.sparsity))).collect();
        let expected = [10, 15, 20, 25, 30].map(|step: u64| {
            let left = (30 - step) as f64 / 20.0;
            (step, 0.9 - 0.9 * left.powi(3))
        });
        assert_eq!(due.len(), expected.len());
        for (found, expected) in due.iter().zip(expected) {
            assert_eq!(found.0, expected.0);
            assert!((found.1 - expected.1).abs() < 1e-12, "{found:?}");
        }
        assert_eq!(due[4].1, 0.9);
        options.end = Span::Fraction(1.0);
        assert_eq!(options.bounds(40), (10, 39), "the last step changes masks too");
    }

    #[test]
    fn numbers_out_of_range_and_unknown_names_are_errors() {
        let error = |change: &dyn Fn(&mut PruneOptions)| {
            let mut options = PruneOptions::to(0.5);
            change(&mut options);
            options.kind().unwrap_err().to_string()
        };
        assert!(error(&|o| o.sparsity = 1.0).contains("`sparsity` is from 0"));
        assert!(error(&|o| o.regrow = -0.1).contains("`regrow` is from 0"));
        assert!(error(&|o| o.importance = "size".into()).contains("there are l1, relative"));
    }
}
