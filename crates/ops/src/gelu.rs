//! Gelu (opset 20): ½·x·(1 + erf(x/√2)), or its tanh approximation (Hendrycks & Gimpel, 2016,
//! arXiv:1606.08415).

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::clip::in_place_or_copy;
use crate::kernels::{elementwise, for_rows};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct Gelu;

impl Operator for Gelu {
    fn op_type(&self) -> &'static str {
        "Gelu"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let loop_over = match node.text("approximate")?.unwrap_or("none") {
            "none" => elementwise::gelu as fn(&mut [f32]),
            "tanh" => elementwise::gelu_tanh,
            other => return Err(OpError::value("approximate", other, "none or tanh")),
        };
        Ok(Box::new(move |run: &mut Run| {
            run.typed::<f32>(0)?;
            let mut y = in_place_or_copy(run)?;
            for_rows(y.slice_mut::<f32>(), 1, |_, rows| loop_over(rows));
            Ok(vec![y])
        }))
    }
}
