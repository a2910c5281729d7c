//! `CumSum` (opset 11 and later): running sums along an axis.

use std::ops::Add;

use attar_graph::Node;
use attar_tensor::{DType, Element, Tensor};

use crate::fact::resolve_axis;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct CumSum;

impl Operator for CumSum {
    fn op_type(&self) -> &'static str {
        "CumSum"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let exclusive = node.int_or("exclusive", 0)? != 0;
        let reverse = node.int_or("reverse", 0)? != 0;
        Ok(Box::new(move |run: &mut Run| {
            let (x, axis) = (run.input(0)?, run.input(1)?);
            let axis = match axis.to_i64().as_deref() {
                Some(&[axis]) => resolve_axis(axis, x.rank())
                    .ok_or_else(|| OpError::value("axis", axis, format!("below {}", x.rank())))?,
                _ => return Err(OpError::value("axis", axis.shape(), "one integer")),
            };
            let mut y = run.pool.tensor(x.dtype(), x.shape());
            match x.dtype() {
                DType::F32 => sums::<f32>(&mut y, x, axis, exclusive, reverse),
                DType::F64 => sums::<f64>(&mut y, x, axis, exclusive, reverse),
                DType::I32 => sums::<i32>(&mut y, x, axis, exclusive, reverse),
                DType::I64 => sums::<i64>(&mut y, x, axis, exclusive, reverse),
                found => return Err(OpError::DType { index: 0, found }),
            }
            Ok(vec![y])
        }))
    }
}

fn sums<T: Element + Default + Add<Output = T>>(
    y: &mut Tensor,
    x: &Tensor,
    axis: usize,
    exclusive: bool,
    reverse: bool,
) {
    let size = x.shape()[axis];
    let inner: usize = x.shape()[axis + 1..].iter().product();
    let (x, y) = (x.slice::<T>(), y.slice_mut::<T>());
    for start in (0..x.len()).step_by((size * inner).max(1)) {
        for column in 0..inner {
            let mut sum = T::default();
            for step in 0..size {
                let row = if reverse { size - 1 - step } else { step };
                let at = start + row * inner + column;
                let next = sum + x[at];
                y[at] = if exclusive { sum } else { next };
                sum = next;
            }
        }
    }
}
