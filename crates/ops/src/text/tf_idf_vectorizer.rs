//! `TfIdfVectorizer` (opset 9 and later): how often each listed n-gram occurs in a row of tokens,
//! tokens in between left out or not; as counts (TF), as weights of those that occur (IDF), or as
//! both multiplied.

use std::collections::HashMap;

use attar_graph::{Dim, Node};
use attar_tensor::{Bytes, DType, Tensor};

use super::{float_list, string_list};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct TfIdfVectorizer;

#[derive(Clone, PartialEq, Eq, Hash)]
enum Token {
    Number(i64),
    Text(Bytes),
}

fn tokens(x: &Tensor) -> Option<Vec<Token>> {
    Some(match x.dtype() {
        DType::String => x.strings().iter().cloned().map(Token::Text).collect(),
        _ => x.to_i64()?.into_iter().map(Token::Number).collect(),
    })
}

/// A size given by an attribute.
fn size(node: &Node, name: &str, default: i64) -> Result<usize, OpError> {
    let value = node.int_or(name, default)?;
    usize::try_from(value).map_err(|_| OpError::value(name, value, "0 or more"))
}

/// Where each n-gram counts, for its place in the pool.
fn output_places(node: &Node) -> Result<Vec<usize>, OpError> {
    let places = node.ints("ngram_indexes")?.unwrap_or_default();
    let error = || OpError::value("ngram_indexes", places, "indices of outputs");
    let places: Option<Vec<usize>> = places
        .iter()
        .map(|&place| usize::try_from(place).ok().filter(|&place| place < 1 << 32))
        .collect();
    places.ok_or_else(error)
}

fn output_count(places: &[usize]) -> usize {
    places.iter().max().map_or(0, |&last| last + 1)
}

#[derive(Clone, Copy)]
enum Mode {
    Counts,
    Weights,
    Both,
}

struct Vectorizer {
    /// Numbers of the tokens that any n-gram has.
    number_of: HashMap<Token, usize>,
    /// Where each n-gram counts.
    place_of: HashMap<Vec<usize>, usize>,
    output_count: usize,
    lengths: std::ops::RangeInclusive<usize>,
    skip_max: usize,
    mode: Mode,
    weights: Option<Vec<f32>>,
}

impl Vectorizer {
    fn new(node: &Node) -> Result<Self, OpError> {
        let mode = match node.text("mode")? {
            Some("TF") => Mode::Counts,
            Some("IDF") => Mode::Weights,
            Some("TFIDF") => Mode::Both,
            other => return Err(OpError::value("mode", other, "TF, IDF or TFIDF")),
        };
        let places = output_places(node)?;
        let lengths = size(node, "min_gram_length", 1)?.max(1)..=size(node, "max_gram_length", 1)?;
        let mut vectorizer = Self {
            number_of: HashMap::new(),
            place_of: HashMap::new(),
            output_count: output_count(&places),
            lengths,
            skip_max: size(node, "max_skip_count", 0)?,
            mode,
            weights: float_list(node, "weights")?.map(<[f32]>::to_vec),
        };
        vectorizer.read_pool(node, &places)?;
        Ok(vectorizer)
    }

    /// The pool holds all 1-grams, then all 2-grams, …, beginning where `ngram_counts` says.
    fn read_pool(&mut self, node: &Node, places: &[usize]) -> Result<(), OpError> {
        let pool: Vec<Token> = if let Some(strings) = string_list(node, "pool_strings")? {
            strings.iter().cloned().map(Token::Text).collect()
        } else {
            let numbers = node.ints("pool_int64s")?.unwrap_or_default();
            numbers.iter().copied().map(Token::Number).collect()
        };
        for token in &pool {
            let next = self.number_of.len();
            self.number_of.entry(token.clone()).or_insert(next);
        }
        let counts = node.ints("ngram_counts")?.unwrap_or_default();
        let error = || OpError::value("ngram_counts", counts, "rising places in the pool");
        let mut id = 0;
        for (index, &start) in counts.iter().enumerate() {
            let length = index + 1;
            let start = usize::try_from(start).map_err(|_| error())?;
            let end = counts.get(index + 1).map_or(Ok(pool.len()), |&end| usize::try_from(end));
            let grams = pool.get(start..end.map_err(|_| error())?).ok_or_else(error)?;
            for gram in grams.chunks_exact(length) {
                let error = || OpError::value("ngram_indexes", places.len(), "one for each n-gram");
                let place = *places.get(id).ok_or_else(error)?;
                id += 1;
                if self.lengths.contains(&length) {
                    let gram = gram.iter().map(|token| self.number_of[token]).collect();
                    self.place_of.insert(gram, place);
                }
            }
        }
        Ok(())
    }

    /// Adds the occurrences in one row of tokens.
    fn count(&self, row: &[Token], counts: &mut [f32]) {
        let row: Vec<Option<usize>> =
            row.iter().map(|token| self.number_of.get(token).copied()).collect();
        for length in self.lengths.clone().take_while(|&length| length <= row.len()) {
            // A gram of one token has nothing to skip.
            let skip_max = if length == 1 { 0 } else { self.skip_max };
            for step in (1..=skip_max.saturating_add(1)).take_while(|step| {
                step.checked_mul(length - 1).is_some_and(|extent| extent < row.len())
            }) {
                for start in 0..row.len() - step * (length - 1) {
                    let gram = (0..length).map(|i| row[start + i * step]);
                    let gram: Option<Vec<usize>> = gram.collect();
                    if let Some(&place) = gram.and_then(|gram| self.place_of.get(&gram)) {
                        counts[place] += 1.0;
                    }
                }
            }
        }
    }

    fn weigh(&self, counts: &mut [f32]) {
        for (place, count) in counts.iter_mut().enumerate() {
            let weight = match &self.weights {
                Some(weights) => weights.get(place).copied().unwrap_or(0.0),
                None => 1.0,
            };
            *count = match self.mode {
                Mode::Counts => *count,
                Mode::Weights if *count > 0.0 => weight,
                Mode::Weights => 0.0,
                Mode::Both => *count * weight,
            };
        }
    }
}

impl Operator for TfIdfVectorizer {
    fn op_type(&self) -> &'static str {
        "TfIdfVectorizer"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let Some(shape) = &required(inputs, 0)?.shape else {
            return Ok(vec![Fact::unranked(DType::F32)]);
        };
        let mut shape = shape[..shape.len().saturating_sub(1)].to_vec();
        shape.push(Dim::from(output_count(&output_places(node)?)));
        Ok(vec![Fact::new(DType::F32, shape)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let vectorizer = Vectorizer::new(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let (rows, width) = match x.shape() {
                &[width] => (None, width),
                &[rows, width] => (Some(rows), width),
                shape => return Err(OpError::value("the shape", shape, "[C] or [N, C]")),
            };
            let found = x.dtype();
            let tokens = tokens(x).ok_or(OpError::DType { index: 0, found })?;
            let shape: Vec<usize> = rows.into_iter().chain([vectorizer.output_count]).collect();
            let mut y = run.pool.declared(DType::F32, &shape)?;
            let all = y.slice_mut::<f32>();
            all.fill(0.0);
            if vectorizer.output_count > 0 {
                let rows = all.chunks_exact_mut(vectorizer.output_count).enumerate();
                for (row, counts) in rows {
                    vectorizer.count(&tokens[row * width..][..width], counts);
                    vectorizer.weigh(counts);
                }
            }
            Ok(vec![y])
        }))
    }
}
