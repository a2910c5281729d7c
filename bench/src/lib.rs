//! What a benchmark runs: a model, and what it is fed.

use std::path::Path;
use std::str::FromStr;

use attar_evaluate::{Shape, synthetic_feeds};
use attar_graph::Value;
use attar_runtime::RuntimeError;
use attar_tensor::{DType, Tensor};

/// A model file and the inputs that are given for it.
#[derive(Clone, Debug)]
pub struct Job {
    pub path: String,
    pub feeds: Vec<Feed>,
}

impl Job {
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), feeds: Vec::new() }
    }

    /// The file's name, with its folder's where it says nothing.
    pub fn name(&self) -> String {
        let mut parts = self.path.rsplit('/');
        let file = parts.next().unwrap_or_default();
        match parts.next() {
            Some(folder) if file == "model.onnx" => format!("{folder}/{file}"),
            _ => file.to_string(),
        }
    }
}

/// The jobs of `bench/models.txt` whose models lie in `folder`.
///
/// # Errors
/// A line that is not a model and its inputs.
pub fn jobs_of_data(folder: &Path) -> Result<Vec<Job>, String> {
    let lines = include_str!("../models.txt").lines();
    let mut jobs = Vec::new();
    for line in lines.filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let path = folder.join(words.next().unwrap_or_default());
        if path.exists() {
            let feeds = words.map(str::parse).collect::<Result<_, _>>()?;
            jobs.push(Job { path: path.to_string_lossy().into_owned(), feeds });
        }
    }
    Ok(jobs)
}

/// An input given as `NAME=SIZExSIZE…`, with `=VALUE` in every element; a scalar is `NAME==VALUE`.
#[derive(Clone, Debug, PartialEq)]
pub struct Feed {
    name: String,
    sizes: Vec<usize>,
    value: Option<f64>,
}

impl FromStr for Feed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || format!("`{text}` is not NAME=SIZExSIZE[=VALUE]");
        let (name, rest) = text.split_once('=').ok_or_else(fail)?;
        let (sizes, value) = rest.split_once('=').map_or((rest, None), |(s, v)| (s, Some(v)));
        let sizes = sizes.split('x').filter(|size| !size.is_empty()).map(str::parse);
        let value = value.map(str::parse).transpose().map_err(|_| fail())?;
        let sizes = sizes.collect::<Result<_, _>>().map_err(|_| fail())?;
        Ok(Self { name: name.into(), sizes, value })
    }
}

impl Feed {
    pub fn is_for(&self, input: &Value) -> bool {
        self.name == input.name
    }

    pub fn shape_text(&self) -> String {
        self.sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join("x")
    }

    /// Every input's values: those given, the others made up in `shape`.
    ///
    /// # Errors
    /// An input of a type that cannot be made up.
    pub fn all(
        inputs: &[Value],
        given: &[Self],
        shape: Shape,
    ) -> Result<Vec<(String, Tensor)>, RuntimeError> {
        let mut feeds = Vec::new();
        for input in inputs {
            match given.iter().find(|feed| feed.is_for(input)) {
                Some(feed) => feeds.push((input.name.clone(), feed.tensor(input)?)),
                None => feeds.extend(synthetic_feeds(std::slice::from_ref(input), shape)?),
            }
        }
        Ok(feeds)
    }

    fn tensor(&self, input: &Value) -> Result<Tensor, RuntimeError> {
        let dtype = input.dtype().unwrap_or(DType::F32);
        let count: usize = self.sizes.iter().product();
        let made_up = |i: usize| match dtype {
            _ if dtype.is_float() => ((i % 1009) as f64 * 0.37).sin(),
            DType::Bool => 1.0,
            DType::U8 | DType::I8 => (i * 37 % 101) as f64,
            // Token ids that the vocabulary of any text model has, and bytes.
            _ if input.name.contains("mask") => 1.0,
            _ if input.name.contains("type") => 0.0,
            _ if input.name.contains("bytes") => (i * 37 % 251) as f64,
            _ => (1000 + i * 37 % 1000) as f64,
        };
        let values: Vec<f64> = (0..count).map(|i| self.value.unwrap_or(made_up(i))).collect();
        Tensor::new(&self.sizes, &values).converted(dtype).map_err(|_| RuntimeError::Unsupported {
            what: format!("made-up values for input `{}` of type {dtype}", input.name),
        })
    }
}

/// The largest difference between outputs, relative to the largest value of each.
pub fn difference(found: &[Tensor], expected: &[Tensor]) -> f64 {
    let mut worst = 0.0_f64;
    for (found, expected) in found.iter().zip(expected) {
        let (Some(found), Some(expected)) = (found.to_f64(), expected.to_f64()) else { continue };
        if found.len() != expected.len() {
            return f64::INFINITY;
        }
        let scale = expected.iter().fold(1e-30, |most: f64, x| most.max(x.abs()));
        for (a, b) in found.iter().zip(&expected) {
            let apart = (a - b).abs() / scale;
            worst = if apart.is_nan() || apart > worst { apart } else { worst };
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_read_with_their_shapes_and_values() {
        let feed: Feed = "x=1x3x48=0.5".parse().unwrap();
        assert_eq!((feed.sizes, feed.value), (vec![1, 3, 48], Some(0.5)));
        let scalar: Feed = "sr==16000".parse().unwrap();
        assert_eq!((scalar.sizes, scalar.value), (vec![], Some(16000.0)));
        assert!("x=axb".parse::<Feed>().is_err());
    }
}
