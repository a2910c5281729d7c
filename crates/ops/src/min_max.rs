//! Min and Max of any number of tensors (opset 8 and later), broadcasting.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::binary::broadcast_values;
use crate::broadcast::{broadcast_facts, broadcast_shapes};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

macro_rules! extremes {
    ($($op:ident, $float:expr, $integer:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                8
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                1..=usize::MAX
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                let facts: Vec<&Fact> =
                    (0..inputs.len()).map(|i| required(inputs, i)).collect::<Result<_, _>>()?;
                Ok(vec![broadcast_facts(&facts, facts[0].dtype)?])
            }

            fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
                Ok(Box::new(|run: &mut Run| {
                    let mut y = run.input(0)?.clone();
                    for index in 1..run.inputs.len() {
                        y = extreme(&y, run.input(index)?, $float, $integer)
                            .map_err(|found| OpError::DType { index, found })??;
                    }
                    Ok(vec![y])
                }))
            }
        }
    )*};
}

extremes! {
    Max, |a, b| if a.is_nan() || a > b { a } else { b }, i64::max;
    Min, |a, b| if a.is_nan() || a < b { a } else { b }, i64::min;
}

/// The outer error is the type that cannot be compared.
fn extreme(
    a: &Tensor,
    b: &Tensor,
    float: fn(f64, f64) -> f64,
    integer: fn(i64, i64) -> i64,
) -> Result<Result<Tensor, OpError>, DType> {
    let shape = match broadcast_shapes(a.shape(), b.shape()) {
        Ok(shape) => shape,
        Err(error) => return Ok(Err(error)),
    };
    let dtype = a.dtype();
    let result = if dtype.is_float() {
        let (x, y) = (a.to_f64().ok_or(dtype)?, b.to_f64().ok_or(b.dtype())?);
        broadcast_values(&x, a.shape(), &y, b.shape(), &shape, |a, b| Some(float(a, b)))
    } else {
        let (x, y) = (a.to_i64().ok_or(dtype)?, b.to_i64().ok_or(b.dtype())?);
        broadcast_values(&x, a.shape(), &y, b.shape(), &shape, |a, b| Some(integer(a, b)))
    };
    Ok(Ok(result.expect("there always is an extreme").converted(dtype).map_err(|_| dtype)?))
}
