//! Losses and optimizers as they are named, and what is chosen where nothing is said.

use attar_evaluate::Dataset;
use attar_evaluate::data::TensorLabels;
use attar_train::{Choice, Decay, LOSSES, OPTIMIZERS, Schedule, SettingEntry, Span};
use serde_json::Value;

use crate::Error;

/// Reads `NAME` or `NAME:key=value,…`; values are JSON, or else text.
///
/// # Errors
/// A setting without a value.
pub fn parse_choice(text: &str) -> Result<Choice, Error> {
    let (name, rest) = text.split_once(':').unwrap_or((text, ""));
    let mut choice = Choice::new(name.trim());
    for part in parts(rest) {
        let Some((key, value)) = part.split_once('=') else {
            return Err(Error::Usage {
                message: format!("`{part}` of `{text}` is no setting"),
                hint: "settings are written NAME:key=value,key=value".into(),
            });
        };
        let value = value.trim();
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into()));
        choice.settings.insert(key.trim().into(), value);
    }
    Ok(choice)
}

/// Parts between commas, those within brackets left alone.
pub(crate) fn parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_i32, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// Reads `constant`, `linear`, `cosine` or `step`, with `:end=…`, or `:every=…,factor=…`.
///
/// # Errors
/// Another name, or a setting that it does not have.
pub fn parse_schedule(text: &str, learning_rate: f64, warm_up: f64) -> Result<Schedule, Error> {
    let fail = |message: String| Error::Usage {
        message: format!("--schedule {text}: {message}"),
        hint: "the schedules are constant, linear[:end=0], cosine[:end=0] and \
               step:every=0.3,factor=0.1"
            .into(),
    };
    let mut choice = parse_choice(text)?;
    let mut take = |key: &str, default: f64| match choice.settings.remove(key) {
        None => Ok(default),
        Some(value) => match value.as_f64().filter(|value| *value >= 0.0) {
            Some(value) => Ok(value),
            None => Err(fail(format!("`{key}` is {value}, expected a number from 0"))),
        },
    };
    let decay = match choice.name.as_str() {
        "constant" => Decay::Constant,
        "linear" => Decay::Linear { end: take("end", 0.0)? },
        "cosine" => Decay::Cosine { end: take("end", 0.0)? },
        "step" => Decay::Step { every: span(take("every", 0.3)?), factor: take("factor", 0.1)? },
        other => return Err(fail(format!("there is no schedule `{other}`"))),
    };
    if let Some(key) = choice.settings.keys().next() {
        return Err(fail(format!("it has no setting `{key}`")));
    }
    Ok(Schedule { learning_rate, decay, warm_up: span(warm_up) })
}

/// Below 1 a part of the run, else steps.
fn span(value: f64) -> Span {
    if value < 1.0 { Span::Fraction(value) } else { Span::Steps(value as u64) }
}

/// Gives a loss or an optimizer a setting that stands in a flag of its own.
///
/// # Errors
/// One that does not have it.
pub fn set(choice: &mut Choice, key: &str, value: f64) -> Result<(), Error> {
    let settings: Option<&[SettingEntry]> = (LOSSES.iter().map(|e| (e.name, e.settings)))
        .chain(OPTIMIZERS.iter().map(|e| (e.name, e.settings)))
        .find(|(name, _)| *name == choice.name)
        .map(|(_, settings)| settings);
    // An unknown name is an error of its own.
    let Some(settings) = settings else { return Ok(()) };
    if !settings.iter().any(|entry| entry.key == key) {
        let known: Vec<&str> = settings.iter().map(|entry| entry.key).collect();
        return Err(Error::Usage {
            message: format!("`{}` has no `{key}`", choice.name),
            hint: match known.as_slice() {
                [] => format!("leave `--{key}` out"),
                known => format!("its settings are {}", known.join(", ")),
            },
        });
    }
    choice.settings.insert(key.into(), value.into());
    Ok(())
}

/// The loss that fits a kind of data: whether there is a teacher, and whether two texts get one
/// score.
///
/// # Errors
/// Data without labels, and no teacher.
pub(crate) fn default_loss(
    data: &Dataset,
    is_taught: bool,
    is_paired: bool,
) -> Result<&'static str, Error> {
    let unlabelled = || Error::Usage {
        message: format!("there is nothing to learn: the {} have no labels", data.kind_name()),
        hint: "name a model to learn from: `--teacher MODEL`".into(),
    };
    let has_classes = match data {
        Dataset::Labelled(_) | Dataset::Images(_) => true,
        Dataset::Tensors(data) => matches!(data.labels, TensorLabels::Classes(_)),
        _ => false,
    };
    let has_values =
        matches!(data, Dataset::Tensors(data) if matches!(data.labels, TensorLabels::Values(_)));
    Ok(match data {
        _ if has_classes => {
            if is_taught {
                "distillation"
            } else {
                "cross-entropy"
            }
        }
        _ if is_taught || has_values => "mse",
        Dataset::Pairs(_) => {
            if is_paired {
                "mse"
            } else {
                "cosine"
            }
        }
        Dataset::Retrieval(_) => "contrastive",
        _ => return Err(unlabelled()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_numbers_lists_or_text() {
        let choice = parse_choice("adamw:betas=[0.9,0.95],epsilon=1e-6,form=fast").unwrap();
        let expected = Choice::new("adamw")
            .with("betas", serde_json::json!([0.9, 0.95]))
            .with("epsilon", 1e-6)
            .with("form", "fast");
        assert_eq!(choice, expected);
        assert!(parse_choice("sgd:momentum").unwrap_err().to_string().contains("`momentum`"));
    }

    #[test]
    fn schedules_are_read_or_named() {
        let schedule = parse_schedule("cosine:end=0.1", 0.01, 0.05).unwrap();
        assert_eq!(schedule.decay, Decay::Cosine { end: 0.1 });
        assert_eq!(schedule.warm_up, Span::Fraction(0.05));
        assert_eq!(parse_schedule("linear", 0.01, 100.0).unwrap().warm_up, Span::Steps(100));
        for (text, expected) in [
            ("cosin", "no schedule `cosin`"),
            ("linear:start=1", "no setting `start`"),
            ("step:every=-1", "`every` is -1"),
        ] {
            let error = parse_schedule(text, 0.01, 0.0).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_flag_sets_only_what_a_loss_has() {
        let mut choice = Choice::new("cross-entropy");
        set(&mut choice, "label-smoothing", 0.1).unwrap();
        assert_eq!(choice.settings["label-smoothing"], 0.1);
        let error = set(&mut Choice::new("mse"), "label-smoothing", 0.1).unwrap_err();
        assert!(error.to_string().contains("`mse` has no `label-smoothing`"));
    }
}
