//! Add, Sub, Mul, Div, Pow, Mod (opset 7 and later): element by element, broadcasting.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Element, Tensor};

use crate::broadcast::{Loops, broadcast_facts, broadcast_shapes};
use crate::kernels::elementwise::{self, Operand};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

type F32Loop = fn(&mut [f32], Operand<'_>, Operand<'_>);
type DimRule = fn(&Dim, &Dim) -> Dim;

macro_rules! arithmetic {
    ($($op:ident, $f32_loop:expr, $dims:expr, $float:expr, $integer:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                7
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                2..=2
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                infer(inputs, $dims)
            }

            fn kernel(
                &self,
                node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let truncates = node.int_or("fmod", 0)? != 0;
                Ok(Box::new(move |run: &mut Run| {
                    let f32_loop: Option<F32Loop> = $f32_loop;
                    if let (Some(f32_loop), DType::F32) = (f32_loop, run.input(0)?.dtype()) {
                        return binary_f32(run, f32_loop);
                    }
                    binary(run, &|a: f64, b: f64| $float(a, b, truncates), &|a: i64, b: i64| {
                        $integer(a, b, truncates)
                    })
                }))
            }
        }
    )*};
}

arithmetic! {
    Add, Some(elementwise::add), Some(|a, b| a + b), |a, b, _| a + b, |a: i64, b, _| Some(a.wrapping_add(b));
    Sub, Some(elementwise::sub), Some(|a, b| a - b), |a, b, _| a - b, |a: i64, b, _| Some(a.wrapping_sub(b));
    Mul, Some(elementwise::mul), Some(|a, b| a * b), |a, b, _| a * b, |a: i64, b, _| Some(a.wrapping_mul(b));
    Div, Some(elementwise::div), Some(Dim::floor_div), |a, b, _| a / b, |a: i64, b, _| a.checked_div(b);
    Pow, None, None, |a: f64, b, _| a.powf(b), |a: i64, b, _| power(a, b);
    Mod, None, None, |a: f64, b: f64, _| a % b, remainder;
}

/// Integers to the power of integers; a negative exponent leaves 1, −1 or 0, as division would.
fn power(a: i64, b: i64) -> Option<i64> {
    match u32::try_from(b) {
        Ok(exponent) => Some(a.wrapping_pow(exponent)),
        Err(_) if b > 0 => None,
        Err(_) if a == 0 => None,
        Err(_) if a == 1 => Some(1),
        Err(_) if a == -1 => Some(if b % 2 == 0 { 1 } else { -1 }),
        Err(_) => Some(0),
    }
}

/// The sign of the divisor, or with `fmod` that of the dividend.
fn remainder(a: i64, b: i64, truncates: bool) -> Option<i64> {
    let rest = a.checked_rem(b)?;
    Some(if truncates || rest == 0 || (rest < 0) == (b < 0) { rest } else { rest + b })
}

fn infer(inputs: &[Option<&Fact>], rule: Option<DimRule>) -> Result<Vec<Fact>, OpError> {
    let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
    let mut fact = broadcast_facts(&[a, b], a.dtype)?;
    if let (Some(rule), Some(x), Some(y)) = (rule, a.elements(), b.elements())
        && fact.rank().is_some_and(|rank| rank <= 1)
        && !a.dtype.is_float()
    {
        let count = if x.is_empty() || y.is_empty() { 0 } else { x.len().max(y.len()) };
        let at = |dims: &[Dim], i: usize| dims[if dims.len() == 1 { 0 } else { i }].clone();
        if (x.len() == count || x.len() == 1) && (y.len() == count || y.len() == 1) {
            fact.set_elements((0..count).map(|i| rule(&at(x, i), &at(y, i))).collect());
        }
    }
    Ok(vec![fact])
}

fn binary_f32(run: &mut Run, f32_loop: F32Loop) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (run.input(0)?, run.typed::<f32>(1)?);
    let shape = broadcast_shapes(a.shape(), b.shape())?;
    let loops = Loops::new([a.shape(), b.shape()], &shape);
    let mut y = run.pool.tensor(DType::F32, &shape);
    let (a, b) = (a.slice::<f32>(), b.slice::<f32>());
    let size = loops.inner_size();
    let [stride_a, stride_b] = loops.inner_strides();
    let mut rows = y.slice_mut::<f32>().chunks_exact_mut(size.max(1));
    loops.for_each_row(|[at_a, at_b]| {
        let Some(row) = rows.next() else { return };
        f32_loop(row, operand(a, at_a, stride_a, size), operand(b, at_b, stride_b, size));
    });
    Ok(vec![y])
}

fn operand(x: &[f32], start: usize, stride: usize, size: usize) -> Operand<'_> {
    if stride == 0 { Operand::Scalar(x[start]) } else { Operand::Row(&x[start..start + size]) }
}

/// Any numeric type, by way of f64 or i64: for shapes and small tensors.
fn binary(
    run: &mut Run,
    float: &dyn Fn(f64, f64) -> f64,
    integer: &dyn Fn(i64, i64) -> Option<i64>,
) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (run.input(0)?, run.input(1)?);
    let shape = broadcast_shapes(a.shape(), b.shape())?;
    let dtype = a.dtype();
    let error = |index: usize, x: &Tensor| OpError::DType { index, found: x.dtype() };
    let y = if dtype.is_float() {
        let (x, y) = (a.to_f64().ok_or(error(0, a))?, b.to_f64().ok_or(error(1, b))?);
        broadcast_values(&x, a.shape(), &y, b.shape(), &shape, |a, b| Some(float(a, b)))
    } else if b.dtype().is_float() {
        return Err(error(1, b));
    } else {
        let (x, y) = (a.to_i64().ok_or(error(0, a))?, b.to_i64().ok_or(error(1, b))?);
        broadcast_values(&x, a.shape(), &y, b.shape(), &shape, integer)
    };
    let y = y.ok_or_else(|| OpError::value("an operand", "0", "a divisor or base other than 0"))?;
    Ok(vec![y.converted(dtype).map_err(|_| error(0, a))?])
}

/// One result per element of `shape`; `None` as soon as one has none.
pub(crate) fn broadcast_values<T: Copy, R: Element>(
    a: &[T],
    shape_a: &[usize],
    b: &[T],
    shape_b: &[usize],
    shape: &[usize],
    value: impl Fn(T, T) -> Option<R>,
) -> Option<Tensor> {
    let loops = Loops::new([shape_a, shape_b], shape);
    let [stride_a, stride_b] = loops.inner_strides();
    let mut values: Vec<R> = Vec::with_capacity(shape.iter().product());
    let mut failed = false;
    loops.for_each_row(|[at_a, at_b]| {
        for i in 0..loops.inner_size() {
            match value(a[at_a + i * stride_a], b[at_b + i * stride_b]) {
                Some(value) => values.push(value),
                None => failed = true,
            }
        }
    });
    (!failed).then(|| Tensor::new(shape, &values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remainder_takes_the_sign_of_the_divisor_unless_fmod() {
        assert_eq!(remainder(-4, 3, false), Some(2));
        assert_eq!(remainder(-4, 3, true), Some(-1));
        assert_eq!(remainder(4, 0, false), None);
    }
}
