//! Gelu (opset 20): ½·x·(1 + erf(x/√2)), or its tanh approximation (Hendrycks & Gimpel, 2016,
//! arXiv:1606.08415).

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::kernels::elementwise;
use crate::unary::{Function, apply, erf_f64, function};
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
        let gelu: Function = match node.text("approximate")?.unwrap_or("none") {
            "none" => function(elementwise::gelu, |x| {
                0.5 * x * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2))
            }),
            "tanh" => function(elementwise::gelu_tanh, |x| {
                let root = (2.0 / std::f64::consts::PI).sqrt();
                0.5 * x * (1.0 + (root * (x + 0.044_715 * x * x * x)).tanh())
            }),
            other => return Err(OpError::value("approximate", other, "none or tanh")),
        };
        Ok(Box::new(move |run: &mut Run| apply(run, &gelu)))
    }

    fn widens_half(&self) -> bool {
        true
    }
}
