//! A step of a recipe that leaves tokens out: of the tokenizer, and of the tables it reads from.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use attar_compress::{KeptTokens, OptionEntry, plan_vocabulary};
use attar_evaluate::{Progress, TrimOptions, trim_tokenizer};
use attar_graph::Plan;
use serde::Deserialize;

use crate::stages::StageEntry;
use crate::{Error, Subject};

pub(crate) const ENTRY: StageEntry = StageEntry {
    name: "prune.vocabulary",
    summary: "leave out the tokens that texts do not use: of tokenizer and embedding tables; texts \
              that need no other get the same vectors as before",
    options: &[
        OptionEntry {
            key: "tokens",
            default: "all used",
            help: "tokens at most, the most frequent",
        },
        OptionEntry {
            key: "characters",
            default: "true",
            help: "tokens of a single character stay, so that other words are spelled, not unknown",
        },
    ],
};

/// The settings of the step.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Vocabulary {
    tokens: Option<NonZeroUsize>,
    characters: bool,
}

impl Default for Vocabulary {
    fn default() -> Self {
        Self { tokens: None, characters: true }
    }
}

impl Vocabulary {
    /// What to change of the model, and the new content of tokenizer.json.
    ///
    /// # Errors
    /// No texts, a tokenizer that cannot be trimmed, or a model that needs all tokens.
    pub(crate) fn plan(
        &self,
        step: usize,
        subject: &Subject,
        texts: &[&str],
        progress: &dyn Progress,
    ) -> Result<(Plan, String), Error> {
        if texts.is_empty() {
            return Err(Error::Usage {
                message: format!("`{}` has no texts to keep the tokens of", ENTRY.name),
                hint: "give it some: `--training SET`, or `--calibration SET`".into(),
            });
        }
        let path = tokenizer_path(subject)?;
        let options = TrimOptions {
            tokens_max: self.tokens.map(NonZeroUsize::get),
            characters: self.characters,
        };
        let trimmed = trim_tokenizer(&path, texts, options, progress)?;
        let tokens = KeptTokens {
            kept: &trimmed.kept,
            size_before: trimmed.size_before,
            padding_stays: trimmed.padding.is_none_or(|(before, now)| before == now),
        };
        let fail = |source| Error::Step { step: Some(step), pass: ENTRY.name.to_string(), source };
        let mut plan = plan_vocabulary(&subject.model, &tokens).map_err(fail)?;
        let count = texts.len();
        plan.remark(format!(
            "{} of {} tokens stay: {} of the {} that {count} texts use, special ones{}",
            trimmed.kept.len(),
            trimmed.size_before,
            trimmed.used_count - trimmed.dropped_count,
            trimmed.used_count,
            if self.characters { ", and single characters" } else { "" }
        ));
        if trimmed.dropped_count > 0 {
            plan.warn(format!(
                "{} rare tokens of the texts are gone: words that held them are split otherwise",
                trimmed.dropped_count
            ));
        }
        Ok((plan, trimmed.json))
    }
}

fn tokenizer_path(subject: &Subject) -> Result<PathBuf, Error> {
    let text = subject.preprocessing.as_ref().and_then(|p| p.text.as_ref());
    let text = text.ok_or_else(|| Error::Usage {
        message: format!("`{}` needs a model that reads texts", ENTRY.name),
        hint: "name its tokenizer in attar.toml, under [text]".into(),
    })?;
    Ok(subject.folder().join(Path::new(&text.tokenizer)))
}
