//! What is said of a network, as text, and what it must be.

use super::{Architecture, ArchitectureOption, COMMON_OPTIONS};
use crate::ImportError;

/// The largest of sizes, so that their products stay within an integer.
const COUNT_MAX: usize = 1 << 24;

pub(super) struct Options<'a> {
    architecture: &'a Architecture,
    given: &'a [(String, String)],
}

impl<'a> Options<'a> {
    pub(super) fn new(
        architecture: &'a Architecture,
        given: &'a [(String, String)],
    ) -> Result<Self, ImportError> {
        let known = || architecture.options.iter().chain(&COMMON_OPTIONS);
        if let Some((key, _)) = given.iter().find(|(key, _)| known().all(|o| o.key != key)) {
            return Err(ImportError::NoOption {
                architecture: architecture.name,
                found: key.clone(),
                known: known().map(|option| option.key).collect::<Vec<_>>().join(", "),
            });
        }
        Ok(Self { architecture, given })
    }

    pub(super) fn text(&self, key: &str) -> &'a str {
        let given = self.given.iter().rfind(|(name, _)| name == key);
        given.map_or_else(|| self.declared(key).default, |(_, value)| value)
    }

    fn declared(&self, key: &str) -> &'static ArchitectureOption {
        let all = self.architecture.options.iter().chain(&COMMON_OPTIONS);
        all.into_iter().find(|option| option.key == key).expect("builders ask for what they list")
    }

    pub(super) fn wrong(&self, key: &str, found: &str, expected: &str) -> ImportError {
        ImportError::Option {
            architecture: self.architecture.name,
            option: self.declared(key).key,
            found: found.into(),
            expected: expected.into(),
        }
    }

    /// A whole number of at least 1.
    pub(super) fn count(&self, key: &str) -> Result<usize, ImportError> {
        self.count_of(key, self.text(key))
    }

    fn count_of(&self, key: &str, text: &str) -> Result<usize, ImportError> {
        let count = text.trim().parse().ok().filter(|count| (1..=COUNT_MAX).contains(count));
        count.ok_or_else(|| self.wrong(key, text, &format!("a whole number from 1 to {COUNT_MAX}")))
    }

    /// Whole numbers of at least 1, divided by commas.
    pub(super) fn counts(&self, key: &str) -> Result<Vec<usize>, ImportError> {
        self.text(key).split(',').map(|part| self.count_of(key, part)).collect()
    }

    pub(super) fn seed(&self) -> Result<u64, ImportError> {
        let text = self.text("seed");
        text.parse().map_err(|_| self.wrong("seed", text, "a whole number of at least 0"))
    }

    /// A number within the bounds.
    pub(super) fn number(&self, key: &str, [least, most]: [f64; 2]) -> Result<f64, ImportError> {
        let text = self.text(key);
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| self.wrong(key, text, &format!("a number from {least} to {most}")))
    }

    /// One number for each channel, or one for all.
    pub(super) fn per_channel(&self, key: &str, channels: usize) -> Result<Vec<f32>, ImportError> {
        let text = self.text(key);
        let numbers: Result<Vec<f32>, _> = text.split(',').map(|x| x.trim().parse()).collect();
        match numbers {
            Ok(one) if one.len() == 1 && one[0].is_finite() => Ok(vec![one[0]; channels]),
            Ok(all) if all.len() == channels && all.iter().all(|x| x.is_finite()) => Ok(all),
            _ => Err(self.wrong(key, text, &format!("a number, or {channels} divided by commas"))),
        }
    }

    pub(super) fn choice(
        &self,
        key: &str,
        choices: &[&'static str],
    ) -> Result<&'static str, ImportError> {
        let text = self.text(key);
        let found = choices.iter().find(|choice| **choice == text);
        found.copied().ok_or_else(|| self.wrong(key, text, &choices.join(", ")))
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, ImportError> {
        Ok(self.choice(key, &["true", "false"])? == "true")
    }
}
