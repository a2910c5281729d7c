//! Arguments of gradual pruning, which `attar train` takes.

use attar::{Error, PruneOptions, PruneScope, Span};
use clap::Args;

/// Which weights become zero while the others are trained.
#[derive(Args)]
#[command(next_help_heading = "Pruning")]
#[allow(clippy::struct_field_names)] // they are the names of the flags
pub(crate) struct PruneArguments {
    /// Sparsity that the weights of products come to on the way: 0.9 leaves a tenth
    #[arg(long, value_name = "SPARSITY")]
    prune_to: Option<f64>,
    /// Which weights matter: l1, relative, taylor, movement or random
    #[arg(long, value_name = "NAME", default_value = "l1", requires = "prune_to")]
    prune_importance: String,
    /// Which weights compete: those of a tensor, or all
    #[arg(long, value_name = "SCOPE", default_value = "tensor", requires = "prune_to",
          value_parser = ["tensor", "global"])]
    prune_scope: String,
    /// When it begins: a part of the run, or above 1 a step
    #[arg(long, value_name = "PART|STEP", default_value_t = 0.0, requires = "prune_to")]
    prune_start: f64,
    /// When the sparsity is reached: a part of the run, or above 1 a step
    #[arg(long, value_name = "PART|STEP", default_value_t = 0.75, requires = "prune_to")]
    prune_end: f64,
    /// Steps from one change of what is zero to the next
    #[arg(long, value_name = "STEPS", default_value = "20", requires = "prune_to")]
    prune_every: std::num::NonZeroU64,
    /// Share of the remaining weights that at first gives its place to pruned ones of greatest
    /// gradient, at each change
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, requires = "prune_to")]
    prune_regrow: f64,
    /// Weights to leave whole, by name; `*` is any text. Can be given several times
    #[arg(long, value_name = "PATTERN", requires = "prune_to")]
    prune_exclude: Vec<String>,
}

impl PruneArguments {
    /// What they ask for, if anything.
    pub(crate) fn options(&self) -> Result<Option<PruneOptions>, Error> {
        let Some(sparsity) = self.prune_to else { return Ok(None) };
        let mut options = PruneOptions::to(sparsity);
        options.importance.clone_from(&self.prune_importance);
        if self.prune_scope == "global" {
            options.scope = PruneScope::Global;
        }
        options.start = span("--prune-start", self.prune_start)?;
        options.end = span("--prune-end", self.prune_end)?;
        options.every = self.prune_every.get();
        options.regrow = self.prune_regrow;
        options.exclude.clone_from(&self.prune_exclude);
        Ok(Some(options))
    }
}

fn span(flag: &str, value: f64) -> Result<Span, Error> {
    if !(value >= 0.0 && value.is_finite()) {
        return Err(Error::Usage {
            message: format!("{flag} {value}: expected a part of the run, or above 1 a step"),
            hint: "see `attar train --help`".into(),
        });
    }
    Ok(if value <= 1.0 { Span::Fraction(value) } else { Span::Steps(value as u64) })
}
