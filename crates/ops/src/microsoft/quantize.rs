//! `QuantizeLinear` and `DequantizeLinear` of ONNX Runtime: those of ONNX, in files older than the
//! 16-bit and 4-bit types of ONNX's own.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::dequantize_linear::DequantizeLinear;
use crate::quantize_linear::QuantizeLinear;
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator};

pub(crate) struct MicrosoftQuantizeLinear;

pub(crate) struct MicrosoftDequantizeLinear;

macro_rules! as_in_onnx {
    ($($op:ident => $standard:ident;)*) => {$(
        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                $standard.op_type()
            }

            fn domain(&self) -> &'static str {
                MICROSOFT_DOMAIN
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                $standard.input_count()
            }

            fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                $standard.infer(node, inputs)
            }

            fn kernel(
                &self,
                node: &Node,
                constants: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                $standard.kernel(node, constants)
            }
        }
    )*};
}

as_in_onnx! {
    MicrosoftQuantizeLinear => QuantizeLinear;
    MicrosoftDequantizeLinear => DequantizeLinear;
}
