//! `Resize` (opset 11): every axis sampled anew at output/scale, nearest, linear or cubic
//! (Keys, 1981), one axis after the other.

mod gradient;
mod sample;
mod settings;
mod taps;

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use self::settings::{Mode, Settings};
use self::taps::Taps;
use crate::channels::{Channels, Place, Port, Tensors, output};
use crate::real::rounded_to;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct Resize;

impl Operator for Resize {
    fn op_type(&self) -> &'static str {
        "Resize"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=4
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer(node, inputs)
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        if node.attribute("axes").is_some() {
            return None;
        }
        let spatial: Vec<usize> = (2..tensors.rank(Port::Input(0))?).collect();
        let mut channels = Channels::default();
        channels.tie_all(tensors, Port::Input(0), Port::Output(0), &spatial);
        if node.input(3).is_some() {
            (0..2).for_each(|axis| {
                channels.held(tensors, Place::InputElement(3, axis), output(0, axis));
            });
        }
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node)?;
        Ok(Box::new(move |run: &mut Run| resize(run, &settings)))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        Ok(Box::new(gradient::ResizeGradient { settings: Settings::new(node)? }))
    }
}

/// A list that counts only when it holds something.
fn given<'a>(inputs: &[Option<&'a Fact>], index: usize) -> Option<&'a Fact> {
    let is_empty =
        |fact: &Fact| fact.shape.as_ref().is_some_and(|shape| shape.as_slice() == [Dim::Known(0)]);
    inputs.get(index).copied().flatten().filter(|fact| !is_empty(fact))
}

fn infer(node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    let x = required(inputs, 0)?;
    let settings = Settings::new(node)?;
    let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
    let axes = settings.axes(shape.len())?;
    let mut dims = shape.clone();
    let scales = given(inputs, 2).map(|fact| fact.constant.as_ref().and_then(Tensor::to_f32));
    let sizes = given(inputs, 3).map(Fact::elements);
    match (scales, sizes) {
        (Some(Some(scales)), _) if scales.len() == axes.len() => {
            for (&axis, &scale) in axes.iter().zip(&scales) {
                dims[axis] = scaled_dim(&shape[axis], scale);
            }
        }
        (None, Some(Some(sizes))) if sizes.len() == axes.len() && settings.stretches() => {
            axes.iter().zip(sizes).for_each(|(&axis, size)| dims[axis] = size.clone());
        }
        (Some(Some(found)), _) => {
            let expected = format!("one for each of {} axes", axes.len());
            return Err(OpError::value("the count of scales", found.len(), expected));
        }
        _ => axes.iter().for_each(|&axis| dims[axis] = Dim::Unknown),
    }
    Ok(vec![Fact::new(x.dtype, dims)])
}

/// ⌊size · scale⌋; of a symbol where the scale is a fraction with a small denominator.
fn scaled_dim(size: &Dim, scale: f32) -> Dim {
    if let Some(size) = size.known() {
        let scaled = (size as f32 * scale).floor();
        return if (0.0..9e15).contains(&scaled) {
            Dim::Known(scaled as i64)
        } else {
            Dim::Unknown
        };
    }
    let denominator = (0..6).map(|power| 1_i64 << power).find(|&denominator| {
        let numerator = scale * denominator as f32;
        numerator == numerator.floor() && (1.0..65536.0).contains(&numerator)
    });
    denominator.map_or(Dim::Unknown, |denominator| {
        let numerator = Dim::Known((scale * denominator as f32) as i64);
        (size * &numerator).floor_div(&Dim::Known(denominator))
    })
}

/// The numbers of an optional list input; an empty one counts as absent.
fn numbers<T>(
    run: &Run,
    index: usize,
    read: impl Fn(&Tensor) -> Option<Vec<T>>,
) -> Result<Option<Vec<T>>, OpError> {
    let Some(tensor) = run.optional(index).filter(|tensor| tensor.element_count() > 0) else {
        return Ok(None);
    };
    read(tensor).map(Some).ok_or(OpError::DType { index, found: tensor.dtype() })
}

fn resize(run: &Run, settings: &Settings) -> Result<Vec<Tensor>, OpError> {
    let x = run.input(0)?;
    let roi = numbers(run, 1, Tensor::to_f64)?;
    let scales = numbers(run, 2, Tensor::to_f32)?;
    let sizes = numbers(run, 3, Tensor::to_i64)?;
    let scaled = settings.scaled(x.shape(), roi.as_deref(), scales.as_deref(), sizes.as_deref())?;
    let shape: Vec<usize> = scaled.iter().map(|axis| axis.output).collect();
    let mut y = run.output(x.dtype(), &shape)?;
    if y.element_count() == 0 {
        return Ok(vec![y]);
    }
    let taps: Vec<Taps> = scaled.iter().map(|axis| Taps::new(settings, axis)).collect();
    if settings.mode == Mode::Nearest {
        sample::nearest(&mut y, x, &taps, settings.extrapolation)?;
        return Ok(vec![y]);
    }
    let work = match x.dtype() {
        DType::F32 | DType::F64 => x.clone(),
        DType::I64 | DType::U64 => x.converted(DType::F64).expect("integers convert to floats"),
        found => x.converted(DType::F32).map_err(|_| OpError::DType { index: 0, found })?,
    };
    let sampled = match work.dtype() {
        DType::F64 => sample::weighted::<f64>(run, &work, &taps, settings.extrapolation)?,
        _ => sample::weighted::<f32>(run, &work, &taps, settings.extrapolation)?,
    };
    run.pool.recycle(y);
    if x.dtype() == DType::Bool {
        return Err(OpError::DType { index: 0, found: DType::Bool });
    }
    Ok(vec![rounded_to(x.dtype(), sampled)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_is_scaled_by_a_fraction() {
        let twice = scaled_dim(&Dim::symbol("w"), 2.0);
        assert_eq!(twice.evaluate(&|_| Some(5)), Some(10));
        let part = scaled_dim(&Dim::symbol("w"), 0.375);
        assert_eq!(part.evaluate(&|_| Some(9)), Some(3));
        assert_eq!(scaled_dim(&Dim::symbol("w"), 0.3), Dim::Unknown);
        assert_eq!(scaled_dim(&Dim::Known(7), 0.6), Dim::Known(4));
    }
}
