//! Size (opset 1 and later): the count of elements as an i64 scalar.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct Size;

impl Operator for Size {
    fn op_type(&self) -> &'static str {
        "Size"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::integers(vec![required(inputs, 0)?.element_count()], 0)])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| Ok(vec![Tensor::scalar(run.input(0)?.element_count() as i64)])))
    }
}
