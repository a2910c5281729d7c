//! Sin, Cos, Tan and their hyperbolic and inverse kin, element by element.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::kernels::{elementwise, slopes};
use crate::unary::{each, function, functions};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

functions! {
    Acos, |_node| each(f32::acos, f64::acos).slope(|x| -1.0 / (1.0 - x * x).sqrt());
    Acosh, |_node| each(f32::acosh, f64::acosh).slope(|x| 1.0 / ((x - 1.0) * (x + 1.0)).sqrt());
    Asin, |_node| each(f32::asin, f64::asin).slope(|x| 1.0 / (1.0 - x * x).sqrt());
    Asinh, |_node| each(f32::asinh, f64::asinh).slope(|x| 1.0 / (x * x + 1.0).sqrt());
    Atan, |_node| each(f32::atan, f64::atan).slope(|x| 1.0 / (x * x + 1.0));
    Atanh, |_node| each(f32::atanh, f64::atanh).slope(|x| 1.0 / (1.0 - x * x));
    Cos, |_node| each(f32::cos, f64::cos).slope(|x| -x.sin());
    Cosh, |_node| each(f32::cosh, f64::cosh).slope(f32::sinh);
    Sin, |_node| each(f32::sin, f64::sin).slope(f32::cos);
    Sinh, |_node| each(f32::sinh, f64::sinh).slope(f32::cosh);
    Tan, |_node| each(f32::tan, f64::tan).slope_by_output(slopes::tan);
    Tanh, |_node| function(elementwise::tanh, f64::tanh).slope_by_output(slopes::tanh);
}
