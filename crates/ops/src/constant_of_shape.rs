//! `ConstantOfShape` (opset 9 and later): a tensor filled with one value, f32 zero by default.

use attar_graph::{AttributeValue, Node};
use attar_tensor::{DType, Tensor};

use crate::words::{by_width, check_movable, words, words_mut};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct ConstantOfShape;

fn value(node: &Node) -> Tensor {
    match node.attribute("value") {
        Some(AttributeValue::Tensor(stored)) if stored.tensor.element_count() == 1 => {
            stored.tensor.aligned()
        }
        _ => Tensor::scalar(0.0_f32),
    }
}

impl Operator for ConstantOfShape {
    fn op_type(&self) -> &'static str {
        "ConstantOfShape"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let value = value(node);
        let dtype: DType = value.dtype();
        let Some(dims) = required(inputs, 0)?.elements() else {
            return Ok(vec![Fact::unranked(dtype)]);
        };
        let mut fact = Fact::new(dtype, dims.to_vec());
        if let ([length], Some(number)) = (dims, value.to_i64())
            && let Some(length) = length.known().filter(|length| (0..=64).contains(length))
            && dtype == DType::I64
        {
            fact.set_elements(vec![attar_graph::Dim::Known(number[0]); length as usize]);
        }
        Ok(vec![fact])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let value = value(node);
        check_movable(0, &value)?;
        Ok(Box::new(move |run: &mut Run| {
            let shape: Vec<usize> =
                run.typed::<i64>(0)?.values::<i64>().iter().map(|&d| d.max(0) as usize).collect();
            if attar_tensor::element_count(&shape)
                .is_none_or(|count| count > isize::MAX as usize / 8)
            {
                return Err(OpError::value("the shape", &shape, "an addressable size"));
            }
            let mut y = run.pool.tensor(value.dtype(), &shape);
            by_width!(value, Word => words_mut::<Word>(&mut y).fill(words::<Word>(&value)[0]));
            Ok(vec![y])
        }))
    }
}
