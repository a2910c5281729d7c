//! Clip: y = min(max(x, low), high). Bounds are attributes up to opset 10, inputs from 11.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::kernels::{elementwise, for_rows};
use crate::number::{Number, by_number};
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
        let attribute = |name: &str| match node.attribute(name) {
            Some(_) => node.float_or(name, 0.0).map(Some),
            None => Ok(None),
        };
        let bounds = [attribute("min")?, attribute("max")?];
        Ok(Box::new(move |run: &mut Run| {
            let dtype = run.input(0)?.dtype();
            let y = by_number!(dtype, T => clip::<T>(run, bounds),
                               found => Err(OpError::DType { index: 0, found }));
            Ok(vec![y?])
        }))
    }

    fn widens_half(&self) -> bool {
        true
    }
}

fn clip<T: Number>(run: &mut Run, attributes: [Option<f32>; 2]) -> Result<Tensor, OpError> {
    let bound = |index: usize| -> Result<Option<T>, OpError> {
        if run.optional(index).is_none() {
            return Ok(attributes[index - 1].map(|bound| T::from_f64(f64::from(bound))));
        }
        let tensor = run.typed::<T>(index)?;
        match tensor.slice::<T>() {
            [value] => Ok(Some(*value)),
            _ => Err(OpError::value("a bound", tensor.shape(), "a scalar")),
        }
    };
    let (low, high) = (bound(1)?.unwrap_or(T::LOWEST), bound(2)?.unwrap_or(T::HIGHEST));
    let mut y = in_place_or_copy(run)?;
    if T::DTYPE == DType::F32 {
        let (low, high) = (low.as_f64() as f32, high.as_f64() as f32);
        for_rows(y.slice_mut::<f32>(), 1, |_, rows| elementwise::clamp(rows, low, high));
        return Ok(y);
    }
    for_rows(y.slice_mut::<T>(), 1, |_, rows| {
        for y in rows {
            *y = if *y < low { low } else { *y };
            *y = if *y > high { high } else { *y };
        }
    });
    Ok(y)
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
