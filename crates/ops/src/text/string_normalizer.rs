//! `StringNormalizer` (opset 10 and later): drops stop words from a list and changes the case of the
//! rest. What is left of nothing is one empty string.

use attar_graph::{Dim, Node};
use attar_tensor::{Bytes, Tensor};

use super::{string_list, string_tensor, strings, text_of};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct StringNormalizer;

#[derive(Clone, Copy)]
enum Case {
    Kept,
    Lower,
    Upper,
}

impl Case {
    fn of(node: &Node) -> Result<Self, OpError> {
        match node.text("case_change_action")? {
            None | Some("NONE") => Ok(Self::Kept),
            Some("LOWER") => Ok(Self::Lower),
            Some("UPPER") => Ok(Self::Upper),
            Some(other) => Err(OpError::value("case_change_action", other, "NONE, LOWER or UPPER")),
        }
    }

    fn apply(self, text: &str) -> String {
        match self {
            Self::Kept => text.to_string(),
            Self::Lower => text.to_lowercase(),
            Self::Upper => text.to_uppercase(),
        }
    }
}

impl Operator for StringNormalizer {
    fn op_type(&self) -> &'static str {
        "StringNormalizer"
    }

    fn since_opset(&self) -> i64 {
        10
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let shape = x.shape.as_ref().map(|shape| match shape.len() {
            2 => vec![Dim::Known(1), Dim::Unknown],
            _ => vec![Dim::Unknown],
        });
        Ok(vec![shape.map_or(Fact::unranked(x.dtype), |shape| Fact::new(x.dtype, shape))])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let case = Case::of(node)?;
        // Words are compared in one case unless case matters.
        let compared =
            if node.int_or("is_case_sensitive", 0)? != 0 { Case::Kept } else { Case::Lower };
        let words = string_list(node, "stopwords")?.unwrap_or_default();
        let words = words.iter().map(|word| Ok(compared.apply(text_of(word)?)));
        let stop_words: Vec<String> = words.collect::<Result<_, OpError>>()?;
        Ok(Box::new(move |run: &mut Run| {
            let is_row = match run.input(0)?.shape() {
                [_] => false,
                [1, _] => true,
                shape => return Err(OpError::value("the shape", shape, "[C] or [1, C]")),
            };
            let mut kept: Vec<Bytes> = Vec::new();
            for string in strings(run, 0)? {
                let text = text_of(string)?;
                if !stop_words.contains(&compared.apply(text)) {
                    kept.push(case.apply(text).into());
                }
            }
            if kept.is_empty() {
                kept.push(Bytes::new());
            }
            let count = kept.len();
            let shape = if is_row { vec![1, count] } else { vec![count] };
            Ok(vec![string_tensor(&shape, kept)])
        }))
    }
}
