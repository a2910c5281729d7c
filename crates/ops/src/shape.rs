//! Shape (opset 1; `start` and `end` from 15): the sizes of a tensor as i64.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct Shape;

/// The slice `start..end` of `rank` axes, as the attributes ask for it.
fn bounds(node: &Node, rank: usize) -> Result<std::ops::Range<usize>, OpError> {
    let rank = rank as i64;
    let clamp = |axis: i64| (if axis < 0 { axis + rank } else { axis }).clamp(0, rank);
    let start = clamp(node.int_or("start", 0)?);
    let end = clamp(node.int_or("end", rank)?);
    Ok(start as usize..end.max(start) as usize)
}

impl Operator for Shape {
    fn op_type(&self) -> &'static str {
        "Shape"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![match &required(inputs, 0)?.shape {
            Some(shape) => Fact::integers(shape[bounds(node, shape.len())?].to_vec(), 1),
            None => Fact::new(DType::I64, vec![Dim::Unknown]),
        }])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(Box::new(move |run: &mut Run| {
            let shape = run.input(0)?.shape();
            let sizes: Vec<i64> =
                shape[bounds(&node, shape.len())?].iter().map(|&size| size as i64).collect();
            Ok(vec![Tensor::new(&[sizes.len()], &sizes)])
        }))
    }
}
