//! `IsNaN` (opset 9) and `IsInf` (opset 10) of floats.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::channels::{Channels, Tensors};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct IsNaN;

impl Operator for IsNaN {
    fn op_type(&self) -> &'static str {
        "IsNaN"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![required(inputs, 0)?.with_dtype(DType::Bool)])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::like_input(tensors, &[]))
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| test(run, f64::is_nan)))
    }
}

pub(crate) struct IsInf;

impl Operator for IsInf {
    fn op_type(&self) -> &'static str {
        "IsInf"
    }

    fn since_opset(&self) -> i64 {
        10
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![required(inputs, 0)?.with_dtype(DType::Bool)])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::like_input(tensors, &[]))
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let positive = node.int_or("detect_positive", 1)? != 0;
        let negative = node.int_or("detect_negative", 1)? != 0;
        Ok(Box::new(move |run: &mut Run| {
            let is_asked = |x: f64| if x > 0.0 { positive } else { negative };
            test(run, |x| x.is_infinite() && is_asked(x))
        }))
    }
}

fn test(run: &Run, holds: impl Fn(f64) -> bool) -> Result<Vec<Tensor>, OpError> {
    let x = run.input(0)?;
    let error = OpError::DType { index: 0, found: x.dtype() };
    if x.to_i64().is_some() {
        return Err(error);
    }
    let values = x.to_f64().ok_or(error)?;
    let mut y = run.pool.tensor(DType::Bool, x.shape());
    let pairs = y.slice_mut::<u8>().iter_mut().zip(values);
    pairs.for_each(|(y, x)| *y = u8::from(holds(x)));
    Ok(vec![y])
}
