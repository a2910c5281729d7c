//! `RegexFullMatch` (opset 20 and later): whether each string as a whole matches a pattern, in the
//! syntax of RE2.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};
use regex::Regex;

use super::{strings, text_of};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct RegexFullMatch;

impl Operator for RegexFullMatch {
    fn op_type(&self) -> &'static str {
        "RegexFullMatch"
    }

    fn since_opset(&self) -> i64 {
        20
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![required(inputs, 0)?.with_dtype(DType::Bool)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let pattern = node.text("pattern")?.unwrap_or_default();
        let regex = Regex::new(&format!(r"\A(?:{pattern})\z"))
            .map_err(|_| OpError::value("pattern", pattern, "a regular expression of RE2"))?;
        Ok(Box::new(move |run: &mut Run| {
            let matches = strings(run, 0)?.iter().map(|s| Ok(regex.is_match(text_of(s)?)));
            let matches: Vec<bool> = matches.collect::<Result<_, OpError>>()?;
            Ok(vec![Tensor::from_bools(run.input(0)?.shape(), &matches)])
        }))
    }
}
