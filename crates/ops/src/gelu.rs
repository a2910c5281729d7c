//! Gelu (opset 20): ½·x·(1 + erf(x/√2)), or its tanh approximation (Hendrycks & Gimpel, 2016,
//! arXiv:1606.08415).

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::channels::{Channels, Tensors};
use crate::gradient::gradient;
use crate::kernels::{elementwise, for_rows, gradient as kernels};
use crate::unary::{Function, apply, erf_f64, function};
use crate::{Backward, Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

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

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::like_input(tensors, &[]))
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

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        match node.text("approximate")?.unwrap_or("none") {
            "none" => by_input(kernels::gelu),
            "tanh" => by_input(kernels::gelu_tanh),
            other => Err(OpError::value("approximate", other, "none or tanh")),
        }
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// dx = dy·f′(x), by a loop that turns dy into dx.
pub(crate) fn by_input(
    change: impl Fn(&mut [f32], &[f32]) + Send + Sync + 'static,
) -> Result<Box<dyn Gradient>, OpError> {
    gradient(Reads::NOTHING.input(0), move |run: &mut Backward| {
        let mut dy = run.take_gradient();
        let x = run.input(0)?.slice::<f32>();
        for_rows(dy.slice_mut::<f32>(), 1, |first, dy| change(dy, &x[first..][..dy.len()]));
        Ok(vec![Some(dy.into())])
    })
}
