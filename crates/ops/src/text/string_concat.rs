//! `StringConcat` (opset 20 and later): strings joined element by element, broadcasting.

use attar_graph::Node;
use attar_tensor::{Bytes, DType, Tensor};

use super::{string_tensor, strings};
use crate::broadcast::{Loops, broadcast_facts, broadcast_shapes};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct StringConcat;

impl Operator for StringConcat {
    fn op_type(&self) -> &'static str {
        "StringConcat"
    }

    fn since_opset(&self) -> i64 {
        20
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let facts = [required(inputs, 0)?, required(inputs, 1)?];
        Ok(vec![broadcast_facts(&facts, DType::String)?])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            let (a, b) = (strings(run, 0)?, strings(run, 1)?);
            let (shape_a, shape_b) = (run.input(0)?.shape(), run.input(1)?.shape());
            let shape = broadcast_shapes(shape_a, shape_b)?;
            let loops = Loops::new([shape_a, shape_b], &shape);
            let [stride_a, stride_b] = loops.inner_strides();
            let mut joined: Vec<Bytes> = Vec::new();
            loops.for_each_row(|[at_a, at_b]| {
                for i in 0..loops.inner_size() {
                    let pair = [&a[at_a + i * stride_a], &b[at_b + i * stride_b]];
                    joined.push(pair.map(Bytes::as_ref).concat().into());
                }
            });
            Ok(vec![string_tensor(&shape, joined)])
        }))
    }
}
