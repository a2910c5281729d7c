//! Clip: y = min(max(x, low), high). Bounds are attributes up to opset 10, inputs from 11.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::channels::{Channels, Tensors};
use crate::gradient::gradient;
use crate::kernels::{elementwise, for_rows, slopes};
use crate::number::{Number, by_number};
use crate::unary::steepen;
use crate::{Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

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

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::like_input(tensors, &[]))
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let bounds = attributes(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let dtype = run.input(0)?.dtype();
            let y = by_number!(dtype, T => clip::<T>(run, bounds),
                               found => Err(OpError::DType { index: 0, found }));
            Ok(vec![y?])
        }))
    }

    /// dx = dy between the bounds; what was cut off flows to the bound.
    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let bounds = attributes(node)?;
        let reads = Reads::NOTHING.output(0).input(1).input(2);
        let wants_bounds = training.wants(1) || training.wants(2);
        gradient(reads, move |run| {
            let bound = |index: usize, none: f32| {
                let given = run.inputs.get(index).and_then(Option::as_ref);
                let given = given.and_then(|bound| bound.slice::<f32>().first().copied());
                given.or(bounds[index - 1]).unwrap_or(none)
            };
            let (low, high) = (bound(1, f32::NEG_INFINITY), bound(2, f32::INFINITY));
            let mut dx = run.take_gradient();
            let y = run.output(0);
            let mut flows = vec![None, None, None];
            if wants_bounds {
                let (dy, y) = (dx.slice::<f32>(), y.slice::<f32>());
                let cut_off = |index: usize, is_cut: &dyn Fn(f32) -> bool| {
                    let cut = dy.iter().zip(y).filter(|(_, y)| is_cut(**y));
                    let sum: f64 = cut.map(|(dy, _)| f64::from(*dy)).sum();
                    let mut bound = run.tensor(run.shape(index));
                    bound.slice_mut::<f32>().fill(sum as f32);
                    Some(Flow::from(bound))
                };
                flows[1] = run.wants(1).then(|| cut_off(1, &|y| y <= low && low < high)).flatten();
                flows[2] = run.wants(2).then(|| cut_off(2, &|y| y >= high)).flatten();
            }
            steepen(&mut dx, y, |dy, y| slopes::clamp(dy, y, low, high));
            flows[0] = Some(dx.into());
            Ok(flows)
        })
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// The bounds that are attributes.
fn attributes(node: &Node) -> Result<[Option<f32>; 2], OpError> {
    let attribute = |name: &str| match node.attribute(name) {
        Some(_) => node.float_or(name, 0.0).map(Some),
        None => Ok(None),
    };
    Ok([attribute("min")?, attribute("max")?])
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
