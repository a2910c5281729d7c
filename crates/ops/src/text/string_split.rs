//! `StringSplit` (opset 20 and later): each string cut at a delimiter, or at stretches of white
//! space; a new last axis holds the parts, filled up with empty strings. The second output counts
//! them.

use attar_graph::{Dim, Node};
use attar_tensor::{Bytes, DType, Tensor};

use super::{string_tensor, strings, text_of};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct StringSplit;

impl Operator for StringSplit {
    fn op_type(&self) -> &'static str {
        "StringSplit"
    }

    fn since_opset(&self) -> i64 {
        20
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let parts = match &x.shape {
            Some(shape) => Fact::new(DType::String, [shape.as_slice(), &[Dim::Unknown]].concat()),
            None => Fact::unranked(DType::String),
        };
        Ok(vec![parts, x.with_dtype(DType::I64)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let delimiter = node.text("delimiter")?.unwrap_or_default().to_string();
        let limit = node.int("maxsplit")?.and_then(|limit| usize::try_from(limit).ok());
        Ok(Box::new(move |run: &mut Run| {
            let mut all: Vec<Vec<&str>> = Vec::new();
            for string in strings(run, 0)? {
                let text = text_of(string)?;
                all.push(if delimiter.is_empty() {
                    split_at_space(text, limit)
                } else {
                    match limit {
                        Some(limit) => text.splitn(limit.saturating_add(1), &delimiter).collect(),
                        None => text.split(&delimiter).collect(),
                    }
                });
            }
            let widest = all.iter().map(Vec::len).max().unwrap_or(0);
            let shape = [run.input(0)?.shape(), &[widest]].concat();
            // One long string among many short ones must not fill the memory.
            let count = attar_tensor::element_count(&shape).filter(|&count| count < 1 << 32);
            let count =
                count.ok_or_else(|| OpError::value("the shape", &shape, "a smaller one"))?;
            let mut parts: Vec<Bytes> = Vec::with_capacity(count);
            for list in &all {
                parts.extend(list.iter().map(|part| Bytes::copy_from_slice(part.as_bytes())));
                parts.resize(parts.len() + widest - list.len(), Bytes::new());
            }
            let counts: Vec<i64> = all.iter().map(|list| list.len() as i64).collect();
            let counts = Tensor::new(run.input(0)?.shape(), &counts);
            Ok(vec![string_tensor(&shape, parts), counts])
        }))
    }
}

/// Words, at most `limit` cut off; the rest keeps the white space at its end.
fn split_at_space(text: &str, limit: Option<usize>) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if limit.is_some_and(|limit| parts.len() >= limit) {
            parts.push(rest);
            break;
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_after_the_last_split_keeps_its_space() {
        assert_eq!(split_at_space("  a  b c ", None), ["a", "b", "c"]);
        assert_eq!(split_at_space("  a  b c ", Some(1)), ["a", "b c "]);
        assert_eq!(split_at_space("  ", Some(0)), [] as [&str; 0]);
    }
}
