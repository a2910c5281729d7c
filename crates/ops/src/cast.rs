//! Cast (opset 6 and later, numbers and bool).

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct Cast;

/// The element type that ONNX gives this number.
fn dtype_of_code(code: i64) -> Option<DType> {
    Some(match code {
        1 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        4 => DType::U16,
        5 => DType::I16,
        6 => DType::I32,
        7 => DType::I64,
        9 => DType::Bool,
        10 => DType::F16,
        11 => DType::F64,
        12 => DType::U32,
        13 => DType::U64,
        16 => DType::BF16,
        _ => return None,
    })
}

fn target(node: &Node) -> Result<DType, OpError> {
    let code = node.int("to")?.ok_or_else(|| OpError::value("to", "absent", "a type"))?;
    dtype_of_code(code)
        .ok_or_else(|| OpError::Unsupported { what: format!("a cast to ONNX type {code}") })
}

impl Operator for Cast {
    fn op_type(&self) -> &'static str {
        "Cast"
    }

    fn since_opset(&self) -> i64 {
        6
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, to) = (required(inputs, 0)?, target(node)?);
        let mut fact = x.with_dtype(to);
        // Sizes stay followed through casts between integers, and survive a round trip by float.
        if let (Some(elements), true) = (x.elements(), to != DType::Bool) {
            fact.set_elements(elements.to_vec());
        }
        Ok(vec![fact])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let to = target(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            if x.dtype() == to {
                return Ok(vec![x.clone()]);
            }
            if (x.dtype(), to) == (DType::I64, DType::F32) {
                let mut y = run.pool.tensor(to, x.shape());
                let pairs = y.slice_mut::<f32>().iter_mut().zip(x.slice::<i64>());
                pairs.for_each(|(y, &x)| *y = x as f32);
                return Ok(vec![y]);
            }
            let found = x.dtype();
            Ok(vec![x.converted(to).map_err(|_| OpError::DType { index: 0, found })?])
        }))
    }
}
