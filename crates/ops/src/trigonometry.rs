//! Sin, Cos, Tan and their hyperbolic and inverse kin, element by element.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::kernels::elementwise;
use crate::unary::{each, function, functions};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

functions! {
    Acos, |_node| each(f32::acos, f64::acos);
    Acosh, |_node| each(f32::acosh, f64::acosh);
    Asin, |_node| each(f32::asin, f64::asin);
    Asinh, |_node| each(f32::asinh, f64::asinh);
    Atan, |_node| each(f32::atan, f64::atan);
    Atanh, |_node| each(f32::atanh, f64::atanh);
    Cos, |_node| each(f32::cos, f64::cos);
    Cosh, |_node| each(f32::cosh, f64::cosh);
    Sin, |_node| each(f32::sin, f64::sin);
    Sinh, |_node| each(f32::sinh, f64::sinh);
    Tan, |_node| each(f32::tan, f64::tan);
    Tanh, |_node| function(elementwise::tanh, f64::tanh);
}
