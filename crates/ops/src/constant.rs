//! Constant (opset 1 and later, all value attributes but the sparse one).

use attar_graph::{AttributeValue, Node};
use attar_tensor::Tensor;

use crate::{Fact, Kernel, OpError, Operator, Run};

pub(crate) struct Constant;

/// The tensor that a `Constant` node stands for.
pub(crate) fn value(node: &Node) -> Result<Tensor, OpError> {
    let (name, attribute) = node
        .attributes
        .iter()
        .find(|(name, _)| name.starts_with("value"))
        .ok_or_else(|| OpError::value("value", "absent", "a value attribute"))?;
    match &attribute.value {
        AttributeValue::Tensor(stored) => Ok(stored.tensor.aligned()),
        AttributeValue::Float(x) => Ok(Tensor::scalar(*x)),
        AttributeValue::Int(x) => Ok(Tensor::scalar(*x)),
        AttributeValue::Floats(x) => Ok(Tensor::new(&[x.len()], x)),
        AttributeValue::Ints(x) => Ok(Tensor::new(&[x.len()], x)),
        AttributeValue::String(x) => {
            Ok(Tensor::from_strings(&[], vec![x.clone()]).expect("one string fills a scalar"))
        }
        AttributeValue::Strings(x) => {
            Ok(Tensor::from_strings(&[x.len()], x.clone()).expect("the count is the shape"))
        }
        _ => Err(OpError::Unsupported { what: format!("attribute `{name}`") }),
    }
}

impl Operator for Constant {
    fn op_type(&self) -> &'static str {
        "Constant"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        0..=0
    }

    fn infer(&self, node: &Node, _: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::constant(&value(node)?)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let tensor = value(node)?;
        Ok(Box::new(move |_: &mut Run| Ok(vec![tensor.clone()])))
    }
}
