//! Texts with a class each: `.csv`, `.tsv` or `.jsonl` of text and label.

use std::path::{Path, PathBuf};

use super::rows::{BadRows, delimiter_of, for_each_object, for_each_record, text_of};
use crate::EvaluateError;

/// Texts and their classes.
#[derive(Clone, Debug, Default)]
pub struct Labelled {
    pub texts: Vec<String>,
    /// Indices into `names`.
    pub labels: Vec<usize>,
    /// The classes: in order of their numbers where all labels are numbers, else of their names.
    pub names: Vec<String>,
    path: PathBuf,
    lines: Vec<usize>,
}

/// Columns, or keys of JSON.
const TEXT: &str = "text";
const LABEL: &str = "label";

/// Classes that numbers may stand for; larger ones are names.
const NUMBERS_MAX: usize = 1 << 16;

impl Labelled {
    pub(crate) fn load(path: &Path, bad: &mut BadRows) -> Result<Self, EvaluateError> {
        let mut rows = Rows::default();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            for_each_object(path, bad, |line, object, bad| {
                match (text_of(object, TEXT), text_of(object, LABEL)) {
                    (Some(text), Some(label)) => rows.push(path, line, &text, &label, bad),
                    _ => bad.bad(path, line, "a row needs `text` and `label`"),
                }
            })?;
        } else {
            rows.load_columns(path, bad)?;
        }
        if rows.texts.is_empty() {
            let message = "it holds no labelled text".into();
            return Err(EvaluateError::Format { path: path.into(), message });
        }
        let names = class_names(&rows.labels);
        let index = |label: &String| {
            if names.is_numbers {
                label.parse().expect("all labels are numbers")
            } else {
                names.names.binary_search(label).expect("every label is among the names")
            }
        };
        Ok(Self {
            labels: rows.labels.iter().map(index).collect(),
            texts: rows.texts,
            names: names.names,
            path: path.into(),
            lines: rows.lines,
        })
    }

    /// Every text's class among `names`, which may be in another order, or have more.
    ///
    /// # Errors
    /// A label that is not among them, with file and line.
    pub fn classes_of(&self, names: &[String]) -> Result<Vec<usize>, EvaluateError> {
        let mut places: Vec<Option<usize>> = Vec::with_capacity(self.names.len());
        for name in &self.names {
            places.push(names.iter().position(|known| known == name));
        }
        let known = match names {
            [] => "none".to_string(),
            [first, .., last] => format!("{} classes, `{first}` to `{last}`", names.len()),
            [only] => format!("`{only}` alone"),
        };
        self.labels
            .iter()
            .enumerate()
            .map(|(row, &label)| {
                places[label].ok_or_else(|| {
                    let name = &self.names[label];
                    self.row_error(row, format!("the model has no class `{name}`; it has {known}"))
                })
            })
            .collect()
    }

    /// Fails for the first row whose class of `classes` is `count` or more.
    ///
    /// # Errors
    /// The row, with file and line.
    pub fn check_classes(&self, classes: &[usize], count: usize) -> Result<(), EvaluateError> {
        match classes.iter().position(|&class| class >= count) {
            None => Ok(()),
            Some(row) => {
                let name = &self.names[self.labels[row]];
                let (class, last) = (classes[row], count.saturating_sub(1));
                let message = format!(
                    "the label `{name}` is class {class}, and the model's classes are 0 to {last}"
                );
                Err(self.row_error(row, message))
            }
        }
    }

    fn row_error(&self, row: usize, message: String) -> EvaluateError {
        EvaluateError::Class { path: self.path.clone(), line: self.lines[row], message }
    }

    /// The rows of these indices, with all class names.
    pub fn subset(&self, indices: &[usize]) -> Self {
        Self {
            texts: indices.iter().map(|&index| self.texts[index].clone()).collect(),
            labels: indices.iter().map(|&index| self.labels[index]).collect(),
            names: self.names.clone(),
            path: self.path.clone(),
            lines: indices.iter().map(|&index| self.lines[index]).collect(),
        }
    }
}

/// Rows as they are read.
#[derive(Default)]
struct Rows {
    texts: Vec<String>,
    labels: Vec<String>,
    lines: Vec<usize>,
}

impl Rows {
    fn push(
        &mut self,
        path: &Path,
        line: usize,
        text: &str,
        label: &str,
        bad: &mut BadRows,
    ) -> Result<(), EvaluateError> {
        let (text, label) = (text.trim(), label.trim());
        if text.is_empty() || label.is_empty() {
            let what = if text.is_empty() { "text" } else { "label" };
            return bad.bad(path, line, format!("the {what} is empty"));
        }
        self.texts.push(text.into());
        self.labels.push(label.into());
        self.lines.push(line);
        Ok(())
    }

    /// By the header `text`, `label` in any order and among others; else two columns, text first.
    fn load_columns(&mut self, path: &Path, bad: &mut BadRows) -> Result<(), EvaluateError> {
        let mut columns = None;
        for_each_record(path, delimiter_of(path), bad, |line, record, bad| {
            let Some((text, label, width)) = columns else {
                columns = Some(header(record).map_or((0, 1, 2), |(t, l)| (t, l, record.len())));
                return match (header(record), record.len()) {
                    (Some(_), _) => Ok(()),
                    (None, 2) => self.push(path, line, &record[0], &record[1], bad),
                    (None, count) => bad.bad(path, line, columns_message(count, 2)),
                };
            };
            match (record.get(text), record.get(label)) {
                (Some(text), Some(label)) if record.len() == width => {
                    self.push(path, line, text, label, bad)
                }
                _ => bad.bad(path, line, columns_message(record.len(), width)),
            }
        })
    }
}

fn columns_message(found: usize, expected: usize) -> String {
    let names = if expected == 2 { ": text, label" } else { "" };
    format!("{found} columns, expected {expected}{names}")
}

/// The columns of text and label, if a row names them.
fn header(record: &csv::StringRecord) -> Option<(usize, usize)> {
    let column = |name: &str| record.iter().position(|f| f.trim().eq_ignore_ascii_case(name));
    Some((column(TEXT)?, column(LABEL)?))
}

struct ClassNames {
    names: Vec<String>,
    is_numbers: bool,
}

fn class_names(labels: &[String]) -> ClassNames {
    let number = |label: &String| {
        let number: usize = label.parse().ok()?;
        (number < NUMBERS_MAX && number.to_string() == *label).then_some(number)
    };
    let numbers: Option<Vec<usize>> = labels.iter().map(number).collect();
    if let Some(largest) = numbers.and_then(|numbers| numbers.into_iter().max()) {
        let names = (0..=largest).map(|number| number.to_string()).collect();
        return ClassNames { names, is_numbers: true };
    }
    let mut names: Vec<String> = labels.to_vec();
    names.sort_unstable();
    names.dedup();
    ClassNames { names, is_numbers: false }
}

/// Whether a file's first row names text and label, or has two columns.
pub(crate) fn is_labelled(path: &Path) -> Result<bool, EvaluateError> {
    let mut found = None;
    if path.extension().is_some_and(|extension| extension == "jsonl") {
        for_each_object(path, &mut BadRows::new(true), |_, object, _| {
            let has_both = object.get(TEXT).is_some() && object.get(LABEL).is_some();
            found.get_or_insert(has_both);
            Ok(())
        })?;
    } else {
        for_each_record(path, delimiter_of(path), &mut BadRows::new(true), |_, record, _| {
            found.get_or_insert(header(record).is_some() || record.len() == 2);
            Ok(())
        })?;
    }
    Ok(found.unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str, content: &[u8], skips: bool) -> Result<(Labelled, usize), EvaluateError> {
        let file = format!("attar-labelled-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(file);
        std::fs::write(&path, content).unwrap();
        let mut bad = BadRows::new(skips);
        let result = Labelled::load(&path, &mut bad).map(|data| (data, bad.count()));
        std::fs::remove_file(&path).unwrap();
        result
    }

    #[test]
    fn columns_are_found_by_name_and_classes_stand_in_order_of_their_names() {
        let csv = b"id,label,text\n1,sport,\"a goal, late\"\n2,art,\"two\nlines\"\n3,sport,x\n";
        let (data, _) = load("named.csv", csv, false).unwrap();
        assert_eq!(data.texts, ["a goal, late", "two\nlines", "x"]);
        assert_eq!((data.names, data.labels), (vec!["art".into(), "sport".into()], vec![1, 0, 1]));
        assert_eq!(data.lines, [2, 3, 5]);
    }

    #[test]
    fn numbers_are_classes_and_text_is_the_first_of_two_columns() {
        let (data, _) = load("plain.tsv", b"a \"quoted\t2\nb\t0\n", false).unwrap();
        assert_eq!((data.names.len(), data.labels), (3, vec![2, 0]));
        let (data, _) = load("far.tsv", b"a\t4000000000\nb\t0\n", false).unwrap();
        assert_eq!(data.names, ["0", "4000000000"]);
    }

    #[test]
    fn bad_rows_are_named_or_counted() {
        let rows: &[(&str, &[u8], &str)] = &[
            ("short.csv", b"text,label\na,b\nonly\n", ":3: 1 columns, expected 2: text, label"),
            ("empty.csv", b"text,label\na,\n", ":2: the label is empty"),
            ("utf8.tsv", b"a\tx\n\xff\tx\n", ":2: "),
            ("key.jsonl", b"{\"text\":\"a\",\"label\":1}\n{\"text\":\"b\"}\n", ":2: a row needs"),
            ("none.csv", b"text,label\n", "it holds no labelled text"),
        ];
        for (name, content, expected) in rows {
            let error = load(name, content, false).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(load("skip.tsv", b"a\tx\n\xff\tx\nb\n", true).unwrap().1, 2);
    }

    #[test]
    fn labels_are_held_against_those_of_a_model() {
        let (data, _) = load("model.tsv", b"a\tcat\nb\tdog\n", false).unwrap();
        let names = ["dog".to_string(), "bird".into(), "cat".into()];
        assert_eq!(data.classes_of(&names).unwrap(), [2, 0]);
        let error = data.classes_of(&names[1..]).unwrap_err().to_string();
        let expected = ":2: the model has no class `dog`; it has 2 classes, `bird` to `cat`";
        assert!(error.ends_with(expected), "{error}");
        let error = data.check_classes(&data.labels, 1).unwrap_err().to_string();
        assert!(error.contains(":2: the label `dog` is class 1"), "{error}");
    }
}
