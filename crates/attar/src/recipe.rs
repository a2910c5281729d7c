//! What to do to a model, as data: steps in order, and the budget the result must meet.

use std::path::Path;

use attar_compress::{Pass, pass_entry};
use serde::{Deserialize, Serialize};

use crate::sensitivity::read_sensitivity;
use crate::stages::Stage;
use crate::training::parts;
use crate::{Error, STAGES};

/// A recipe file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    #[serde(default, skip_serializing_if = "Budget::is_empty")]
    pub budget: Budget,
    #[serde(default, rename = "step")]
    pub steps: Vec<Step>,
}

/// Bounds on the result; what is not given is not bounded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Bytes of the model on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes_max: Option<u64>,
    /// Size over the original's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_ratio_max: Option<f64>,
    /// Fall of the data set's first metric, in its own unit: 0.01 is one point of nDCG.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality_drop_max: Option<f64>,
    /// The original's median time over the result's, on the runtime that measures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speedup_min: Option<f64>,
    /// Least cosine between a vector of the original and the result's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine_min: Option<f64>,
}

impl Budget {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads `key=value,key=value`.
    ///
    /// # Errors
    /// Unknown keys and values that are no numbers.
    pub fn parse(text: &str) -> Result<Self, Error> {
        settings(text)?.try_into().map_err(|error: toml::de::Error| Error::Recipe {
            place: format!("--budget {text}"),
            message: error.message().to_string(),
        })
    }
}

/// One pass with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub pass: String,
    /// Patterns of nodes and tensors that this step leaves alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    #[serde(flatten)]
    pub settings: toml::Table,
}

impl Step {
    /// Reads `pass` or `pass:key=value,key=value`.
    ///
    /// # Errors
    /// An unknown pass, or settings it does not take.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (pass, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut settings = settings(rest)?;
        let exclude = match settings.remove("exclude") {
            Some(toml::Value::Array(patterns)) => {
                patterns.iter().filter_map(|p| p.as_str().map(str::to_string)).collect()
            }
            Some(toml::Value::String(pattern)) => vec![pattern],
            _ => Vec::new(),
        };
        let step = Self { pass: pass.into(), exclude, settings };
        step.check()?;
        Ok(step)
    }

    /// That there is such a step, and that it takes these settings.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn check(&self) -> Result<(), Error> {
        match self.stage()? {
            Some(_) => Ok(()),
            None => self.build().map(|_| ()),
        }
    }

    /// Whether it reads data of its own: to train on, or for its texts.
    pub fn reads_data(&self) -> bool {
        STAGES.iter().any(|stage| stage.name == self.pass)
    }

    /// Its settings, if it is no pass.
    pub(crate) fn stage(&self) -> Result<Option<Stage>, Error> {
        Stage::of(&self.pass, &self.settings)
    }

    /// The pass, ready to plan.
    ///
    /// # Errors
    /// An unknown pass, or settings it does not take.
    pub fn build(&self) -> Result<Box<dyn Pass>, Error> {
        let settings = self.settings_with_content()?;
        let built = pass_entry(&self.pass).and_then(|entry| entry.build(settings));
        built.map_err(|source| Error::Step { step: None, pass: self.pass.clone(), source })
    }

    /// The settings, with what stands in a file that one of them names: passes read none.
    fn settings_with_content(&self) -> Result<toml::Table, Error> {
        let mut settings = self.settings.clone();
        let path = settings.get(FILE_SETTING).and_then(toml::Value::as_str).unwrap_or_default();
        if !path.is_empty() {
            let found = read_sensitivity(Path::new(path))?;
            let content = toml::Value::try_from(found).map_err(|error| Error::Recipe {
                place: path.into(),
                message: error.to_string(),
            })?;
            settings.insert(FILE_SETTING.into(), content);
        }
        Ok(settings)
    }
}

/// The setting that names a file, by its path from where attar is run.
const FILE_SETTING: &str = "sensitivity";

/// TOML, or else text, of which lists and tables may hold some too.
fn value(text: &str) -> Result<toml::Value, Error> {
    let line = format!("value = {text}");
    if let Some(value) = line.parse::<toml::Table>().ok().and_then(|mut t| t.remove("value")) {
        return Ok(value);
    }
    let within = |[open, close]: [char; 2]| text.strip_prefix(open)?.strip_suffix(close);
    if let Some(list) = within(['[', ']']) {
        let items = parts(list).into_iter().map(|item| value(item.trim()));
        return Ok(toml::Value::Array(items.collect::<Result<_, _>>()?));
    }
    match within(['{', '}']) {
        Some(table) => settings(table).map(toml::Value::Table),
        None => Ok(toml::Value::String(text.into())),
    }
}

/// `key=value,…` as a table.
fn settings(text: &str) -> Result<toml::Table, Error> {
    let mut table = toml::Table::new();
    for part in parts(text).into_iter().map(str::trim) {
        let Some((key, content)) = part.split_once('=') else {
            return Err(Error::Recipe {
                place: text.into(),
                message: format!("`{part}` is not key=value"),
            });
        };
        table.insert(key.trim().into(), value(content.trim())?);
    }
    Ok(table)
}

impl Recipe {
    /// Reads a recipe and checks every step's settings.
    ///
    /// # Errors
    /// A file that cannot be read, with line and key where it is wrong.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::File { path: path.into(), source })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads the text of a recipe; `place` is what messages call it.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, place: &str) -> Result<Self, Error> {
        let recipe: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            let message = error.message().to_string();
            Error::Recipe { place: format!("{place}:{line}"), message }
        })?;
        for (index, step) in recipe.steps.iter().enumerate() {
            step.check().map_err(|error| match error {
                Error::Step { pass, source, .. } => {
                    Error::Step { step: Some(index + 1), pass, source }
                }
                other => other,
            })?;
        }
        Ok(recipe)
    }

    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe is made of what TOML can hold")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_on_the_command_line_is_the_step_of_a_file() {
        let step = Step::parse("prune.magnitude:sparsity=0.3,scope=global").unwrap();
        let text = "[[step]]\npass = \"prune.magnitude\"\nsparsity = 0.3\nscope = \"global\"\n";
        let recipe = Recipe::parse(text, "recipe.toml").unwrap();
        assert_eq!(recipe.steps, [step]);
        assert_eq!(Recipe::parse(&recipe.to_toml(), "again").unwrap(), recipe);
    }

    #[test]
    fn words_in_lists_and_tables_need_no_quotes() {
        let step = "recover:prune={sparsity=0.9,importance=l1,end={fraction=0.5}},features=[a,*/b]";
        let text = "[[step]]\npass = \"recover\"\nfeatures = [\"a\", \"*/b\"]\n[step.prune]\n\
                    sparsity = 0.9\nimportance = \"l1\"\nend = { fraction = 0.5 }\n";
        let recipe = Recipe::parse(text, "recipe.toml").unwrap();
        assert_eq!(recipe.steps, [Step::parse(step).unwrap()]);
        let error = Step::parse("recover:prune={sparsity}").unwrap_err();
        assert!(error.chain().contains("`sparsity` is not key=value"), "{}", error.chain());
    }

    #[test]
    fn a_wrong_value_names_step_and_pass() {
        let text = "[[step]]\npass = \"prune.magnitude\"\nsparsity = 1.5\n";
        let error = Recipe::parse(text, "recipe.toml").unwrap_err();
        assert_eq!(
            error.chain(),
            "step 1 `prune.magnitude` failed: settings of `prune.magnitude`: 1.5 is not between 0 and 1"
        );
    }

    #[test]
    fn an_unknown_budget_is_refused_with_its_line() {
        let error = Recipe::parse("[budget]\nsize_max = 3\n", "recipe.toml").unwrap_err();
        assert!(
            error.chain().starts_with("recipe.toml:2: unknown field `size_max`"),
            "{}",
            error.chain()
        );
        assert!(Budget::parse("size_ratio_max=0.3").unwrap().size_ratio_max == Some(0.3));
    }
}
