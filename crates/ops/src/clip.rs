//! Clip: y = min(max(x, low), high). Bounds are attributes up to opset 10, inputs from 11.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::kernels::{elementwise, for_rows};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct Clip;

impl Operator for Clip {
    fn op_type(&self) -> &'static str {
        "Clip"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let low = node.float_or("min", f32::MIN)?;
        let high = node.float_or("max", f32::MAX)?;
        Ok(Box::new(move |run: &mut Run| clip(run, low, high)))
    }

    fn macs(&self, _: &Node, _: &[Option<&Fact>], _: &[Fact]) -> Dim {
        Dim::Known(0)
    }
}

fn clip(run: &mut Run, low: f32, high: f32) -> Result<Vec<Tensor>, OpError> {
    let bound = |index: usize| -> Result<Option<f64>, OpError> {
        let Some(tensor) = run.optional(index) else { return Ok(None) };
        match tensor.to_f64().as_deref() {
            Some(&[value]) => Ok(Some(value)),
            _ => Err(OpError::value("a bound", tensor.shape(), "a scalar")),
        }
    };
    let (given_low, given_high) = (bound(1)?, bound(2)?);
    match run.input(0)?.dtype() {
        DType::F32 => {
            let low = given_low.map_or(low, |low| low as f32);
            let high = given_high.map_or(high, |high| high as f32);
            let mut y = in_place_or_copy(run)?;
            for_rows(y.slice_mut::<f32>(), 1, |_, rows| elementwise::clamp(rows, low, high));
            Ok(vec![y])
        }
        DType::F64 => {
            let (low, high) = (given_low.unwrap_or(f64::MIN), given_high.unwrap_or(f64::MAX));
            let mut y = in_place_or_copy(run)?;
            y.slice_mut::<f64>().iter_mut().for_each(|y| *y = y.max(low).min(high));
            Ok(vec![y])
        }
        dtype @ (DType::I64 | DType::I32 | DType::I8 | DType::U8) => {
            let low = given_low.map_or(i64::MIN, |low| low as i64);
            let high = given_high.map_or(i64::MAX, |high| high as i64);
            let x = run.input(0)?;
            let values = x.to_i64().ok_or(OpError::DType { index: 0, found: dtype })?;
            let clipped: Vec<i64> = values.iter().map(|&x| x.max(low).min(high)).collect();
            let y = Tensor::new(x.shape(), &clipped).converted(dtype);
            Ok(vec![y.map_err(|_| OpError::DType { index: 0, found: dtype })?])
        }
        found => Err(OpError::DType { index: 0, found }),
    }
}

/// Input 0 to be overwritten: itself where it dies here, a copy in a pooled buffer otherwise.
pub(crate) fn in_place_or_copy(run: &mut Run) -> Result<Tensor, OpError> {
    if let Some(x) = run.take_unique(0) {
        return Ok(x);
    }
    let x = run.input(0)?;
    crate::words::check_movable(0, x)?;
    let mut y = run.pool.tensor(x.dtype(), x.shape());
    crate::words::words_mut::<u8>(&mut y).copy_from_slice(x.bytes());
    Ok(y)
}
