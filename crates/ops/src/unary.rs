//! Functions of one value: Abs, Erf, Sqrt and their kin, element by element.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::broadcast::Operand;
use crate::clip::in_place_or_copy;
use crate::gradient::{gradient, zero_gradient};
use crate::kernels::{elementwise, for_rows, slopes};
use crate::number::{Number, by_integer};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, required};

/// What a function does to slices of floats, and to integers if it takes them.
pub(crate) struct Function {
    f32_loop: Box<dyn Fn(&mut [f32]) + Send + Sync>,
    f64_loop: Box<dyn Fn(&mut [f64]) + Send + Sync>,
    integer: Option<Integer>,
    slope: Slope,
}

/// Multiplies a gradient by the slope at each of the values.
type SlopeLoop = Box<dyn Fn(&mut [f32], &[f32]) + Send + Sync>;

/// The slope of a function, and what tells it.
enum Slope {
    Unknown,
    Zero,
    Constant(f32),
    OfInput(SlopeLoop),
    OfOutput(SlopeLoop),
}

/// The functions of integers.
#[derive(Clone, Copy)]
pub(crate) enum Integer {
    Abs,
    Neg,
    Relu,
    Sign,
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

            fn channels(&self, _: &Node, tensors: &$crate::channels::Tensors) -> Option<$crate::channels::Channels> {
                Some($crate::channels::Channels::like_input(tensors, &[]))
            }

            fn kernel(
                &self,
                $node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let function: $crate::unary::Function = $function;
                Ok(Box::new(move |run: &mut Run| $crate::unary::apply(run, &function)))
            }

            fn gradient(
                &self,
                $node: &Node,
                _: &$crate::Training,
            ) -> Result<Box<dyn $crate::Gradient>, OpError> {
                let function: $crate::unary::Function = $function;
                function.gradient()
            }

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}
pub(crate) use functions;

/// A function with a loop of its own for f32.
pub(crate) fn function(
    f32_loop: impl Fn(&mut [f32]) + Send + Sync + 'static,
    f64_value: impl Fn(f64) -> f64 + Send + Sync + 'static,
) -> Function {
    Function {
        f32_loop: Box::new(f32_loop),
        f64_loop: Box::new(move |data| data.iter_mut().for_each(|x| *x = f64_value(*x))),
        integer: None,
        slope: Slope::Unknown,
    }
}

/// A function whose f32 form is a plain expression.
pub(crate) fn each(
    f32_value: impl Fn(f32) -> f32 + Send + Sync + 'static,
    f64_value: impl Fn(f64) -> f64 + Send + Sync + 'static,
) -> Function {
    function(move |data| data.iter_mut().for_each(|x| *x = f32_value(*x)), f64_value)
}

impl Function {
    pub(crate) fn and_integers(self, integer: Integer) -> Self {
        Self { integer: Some(integer), ..self }
    }

    /// Straight.
    pub(crate) fn constant_slope(self, slope: f32) -> Self {
        Self { slope: Slope::Constant(slope), ..self }
    }

    /// Constant but for its steps.
    pub(crate) fn flat(self) -> Self {
        Self { slope: Slope::Zero, ..self }
    }

    /// With the loop that multiplies a gradient by the slope at the input.
    pub(crate) fn slope_by_input(
        self,
        slope: impl Fn(&mut [f32], &[f32]) + Send + Sync + 'static,
    ) -> Self {
        Self { slope: Slope::OfInput(Box::new(slope)), ..self }
    }

    /// With the loop that multiplies a gradient by the slope, told by the output.
    pub(crate) fn slope_by_output(
        self,
        slope: impl Fn(&mut [f32], &[f32]) + Send + Sync + 'static,
    ) -> Self {
        Self { slope: Slope::OfOutput(Box::new(slope)), ..self }
    }

    /// With the slope as a plain expression of the input.
    pub(crate) fn slope(self, slope: fn(f32) -> f32) -> Self {
        self.slope_by_input(move |dy, x| {
            dy.iter_mut().zip(x).for_each(|(dy, &x)| *dy *= slope(x));
        })
    }

    /// dx = dy · slope.
    ///
    /// # Errors
    /// When no slope is known.
    pub(crate) fn gradient(self) -> Result<Box<dyn Gradient>, OpError> {
        match self.slope {
            Slope::Unknown => Err(OpError::NoGradient),
            Slope::Zero => zero_gradient(),
            Slope::Constant(slope) => gradient(Reads::NOTHING, move |run| {
                let mut dx = run.take_gradient();
                for_rows(dx.slice_mut::<f32>(), 1, |_, dx| {
                    elementwise::mul_in_place(dx, Operand::Scalar(slope));
                });
                Ok(vec![Some(dx.into())])
            }),
            Slope::OfInput(slope) => gradient(Reads::NOTHING.input(0), move |run| {
                let mut dx = run.take_gradient();
                steepen(&mut dx, run.input(0)?, &slope);
                Ok(vec![Some(dx.into())])
            }),
            Slope::OfOutput(slope) => gradient(Reads::NOTHING.output(0), move |run| {
                let mut dx = run.take_gradient();
                steepen(&mut dx, run.output(0), &slope);
                Ok(vec![Some(dx.into())])
            }),
        }
    }
}

/// dy = dy · slope(values), on every thread.
pub(crate) fn steepen(
    dy: &mut Tensor,
    values: &Tensor,
    slope: impl Fn(&mut [f32], &[f32]) + Sync + Send,
) {
    let values = values.slice::<f32>();
    for_rows(dy.slice_mut::<f32>(), 1, |first, dy| slope(dy, &values[first..first + dy.len()]));
}

/// erf x in f64.
pub(crate) fn erf_f64(x: f64) -> f64 {
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
    Abs, |_node| {
        each(f32::abs, f64::abs).and_integers(Integer::Abs).slope_by_input(slopes::abs)
    };
    Ceil, |_node| function(elementwise::ceil, f64::ceil).flat();
    Erf, |_node| function(elementwise::erf, erf_f64).slope_by_input(slopes::erf);
    Exp, |_node| function(elementwise::exp, f64::exp).slope_by_output(slopes::exp);
    Floor, |_node| function(elementwise::floor, f64::floor).flat();
    Log, |_node| function(elementwise::ln, f64::ln).slope_by_input(slopes::ln);
    Neg, |_node| each(|x| -x, |x| -x).and_integers(Integer::Neg).constant_slope(-1.0);
    Reciprocal, |_node| {
        each(|x| 1.0 / x, |x| 1.0 / x).slope_by_output(slopes::reciprocal)
    };
    Round, |_node| function(elementwise::round, f64::round_ties_even).flat();
    Sign, |_node| each(f32::sign, f64::sign).and_integers(Integer::Sign).flat();
    Sqrt, |_node| function(elementwise::sqrt, f64::sqrt).slope_by_output(slopes::sqrt);
}

pub(crate) fn apply(run: &mut Run, function: &Function) -> Result<Vec<Tensor>, OpError> {
    let found = run.input(0)?.dtype();
    let error = OpError::DType { index: 0, found };
    if !matches!(found, DType::F32 | DType::F64) && (found.is_float() || function.integer.is_none())
    {
        return Err(error);
    }
    let mut y = in_place_or_copy(run)?;
    match (found, function.integer) {
        (DType::F32, _) => {
            for_rows(y.slice_mut::<f32>(), 1, |_, rows| (function.f32_loop)(rows));
        }
        (DType::F64, _) => {
            for_rows(y.slice_mut::<f64>(), 1, |_, rows| (function.f64_loop)(rows));
        }
        (_, Some(integer)) => {
            by_integer!(found, T => apply_to_integers(y.slice_mut::<T>(), integer),
                        _ => return Err(error));
        }
        _ => return Err(error),
    }
    Ok(vec![y])
}

fn apply_to_integers<T: Number>(data: &mut [T], function: Integer) {
    let value = match function {
        Integer::Abs => T::magnitude,
        Integer::Neg => T::negated,
        Integer::Relu => |x: T| x.greater(T::ZERO),
        Integer::Sign => T::sign,
    };
    data.iter_mut().for_each(|x| *x = value(*x));
}
