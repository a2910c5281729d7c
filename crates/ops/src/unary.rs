//! Functions of one value: Relu, Erf, Sqrt and their kin, element by element.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::clip::in_place_or_copy;
use crate::kernels::{elementwise, for_rows};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

/// What a function does to f32 slices and to single values of other types.
struct Function {
    f32_loop: Box<dyn Fn(&mut [f32]) + Send + Sync>,
    f64_value: Box<dyn Fn(f64) -> f64 + Send + Sync>,
}

macro_rules! functions {
    ($($op:ident, |$node:ident| $function:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                1..=1
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                let x = required(inputs, 0)?;
                Ok(vec![x.with_dtype(x.dtype)])
            }

            fn kernel(
                &self,
                $node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let function: Function = $function;
                Ok(Box::new(move |run: &mut Run| apply(run, &function)))
            }
        }
    )*};
}

fn function(
    f32_loop: impl Fn(&mut [f32]) + Send + Sync + 'static,
    f64_value: impl Fn(f64) -> f64 + Send + Sync + 'static,
) -> Function {
    Function { f32_loop: Box::new(f32_loop), f64_value: Box::new(f64_value) }
}

/// A function whose f32 form is a plain expression.
fn each(
    f32_value: impl Fn(f32) -> f32 + Send + Sync + 'static,
    f64_value: impl Fn(f64) -> f64 + Send + Sync + 'static,
) -> Function {
    function(move |data| data.iter_mut().for_each(|x| *x = f32_value(*x)), f64_value)
}

fn erf_f64(x: f64) -> f64 {
    // Series up to 3, where it converges fast; beyond, the continued fraction of erfc.
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let a = x.abs();
    let fraction = (1..60).rev().fold(a, |tail, n| a + f64::from(n) / 2.0 / tail);
    let erfc = (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt());
    (1.0 - erfc).copysign(x)
}

functions! {
    Abs, |_node| each(f32::abs, f64::abs);
    Ceil, |_node| each(f32::ceil, f64::ceil);
    Erf, |_node| function(elementwise::erf, erf_f64);
    Exp, |_node| function(elementwise::exp, f64::exp);
    Floor, |_node| each(f32::floor, f64::floor);
    HardSigmoid, |node| {
        let (alpha, beta) = (node.float_or("alpha", 0.2)?, node.float_or("beta", 0.5)?);
        each(
            move |x| (alpha * x + beta).clamp(0.0, 1.0),
            move |x| (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
        )
    };
    HardSwish, |_node| each(
        |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
    );
    LeakyRelu, |node| {
        let alpha = node.float_or("alpha", 0.01)?;
        each(
            move |x| if x < 0.0 { alpha * x } else { x },
            move |x| if x < 0.0 { f64::from(alpha) * x } else { x },
        )
    };
    Log, |_node| each(f32::ln, f64::ln);
    Neg, |_node| each(|x| -x, |x| -x);
    Reciprocal, |_node| each(|x| 1.0 / x, |x| 1.0 / x);
    Relu, |_node| function(
        |data| elementwise::clamp(data, 0.0, f32::INFINITY),
        |x| if x < 0.0 { 0.0 } else { x },
    );
    Round, |_node| each(f32::round_ties_even, f64::round_ties_even);
    Sigmoid, |_node| function(elementwise::sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
    Sqrt, |_node| function(elementwise::sqrt, f64::sqrt);
    Tanh, |_node| function(elementwise::tanh, f64::tanh);
}

fn apply(run: &mut Run, function: &Function) -> Result<Vec<Tensor>, OpError> {
    let x = run.input(0)?;
    let (dtype, error) = (x.dtype(), OpError::DType { index: 0, found: x.dtype() });
    if dtype == DType::F32 {
        let mut y = in_place_or_copy(run)?;
        for_rows(y.slice_mut::<f32>(), 1, |_, rows| (function.f32_loop)(rows));
        return Ok(vec![y]);
    }
    let values = x.to_f64().ok_or(error)?;
    let results: Vec<f64> = values.into_iter().map(&function.f64_value).collect();
    let y = Tensor::new(x.shape(), &results).converted(dtype);
    Ok(vec![y.map_err(|_| OpError::DType { index: 0, found: dtype })?])
}
