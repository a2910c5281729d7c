//! `ConstantOfShape` (opset 9 and later): a tensor filled with one value, f32 zero by default.

use attar_graph::{AttributeValue, Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::words::{by_width, check_movable, packed, unpacked, words, words_mut};
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
        let sizes = required(inputs, 0)?;
        let Some(dims) = sizes.elements() else {
            let rank = sizes.shape.as_ref().and_then(|shape| shape.first()?.known());
            return Ok(vec![match rank {
                Some(rank) if (0..64).contains(&rank) => {
                    Fact::new(dtype, vec![Dim::Unknown; rank as usize])
                }
                _ => Fact::unranked(dtype),
            }]);
        };
        let mut fact = Fact::new(dtype, dims.to_vec());
        if let ([length], Some(number)) = (dims, value.to_i64())
            && let Some(length) = length.known().filter(|length| (0..=64).contains(length))
            && matches!(dtype, DType::I64 | DType::I32 | DType::Bool)
        {
            fact.set_elements(vec![Dim::Known(number[0]); length as usize]);
        }
        Ok(vec![fact])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let stored = value(node);
        let dtype = stored.dtype();
        let value = if matches!(dtype.bits(), 2 | 4) { unpacked(&stored) } else { stored };
        check_movable(0, &value)?;
        Ok(Box::new(move |run: &mut Run| {
            let sizes = run.typed::<i64>(0)?.values::<i64>();
            let shape: Option<Vec<usize>> =
                sizes.iter().map(|&size| usize::try_from(size).ok()).collect();
            let shape = shape.ok_or_else(|| OpError::value("the shape", &sizes, "no negatives"))?;
            let mut y = run.pool.declared(value.dtype(), &shape)?;
            by_width!(value, Word => words_mut::<Word>(&mut y).fill(words::<Word>(&value)[0]));
            Ok(vec![if y.dtype() == dtype { y } else { packed(&y, dtype) }])
        }))
    }
}
