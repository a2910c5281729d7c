//! Cast and `CastLike` (opset 6; every type from 28): elements converted to another type. `BitCast`
//! (opset 26): the same bits read as another type.

use attar_graph::Node;
use attar_tensor::{Casting, DType, Element, ScaleRounding, Tensor, TensorError};

use crate::channels::{Channels, Tensors};
use crate::gradient::reshape_gradient;
use crate::kernels::for_rows;
use crate::onnx_type::dtype_attribute;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Pool, Run, Training, required};

pub(crate) struct Cast;

fn target(node: &Node) -> Result<DType, OpError> {
    dtype_attribute(node, "to")?.ok_or_else(|| OpError::value("to", "absent", "a type"))
}

pub(crate) fn casting(node: &Node) -> Result<Casting, OpError> {
    let round = match node.text("round_mode")?.unwrap_or("up") {
        "up" => ScaleRounding::Up,
        "down" => ScaleRounding::Down,
        "nearest" => ScaleRounding::Nearest,
        other => return Err(OpError::value("round_mode", other, "up, down or nearest")),
    };
    Ok(Casting { saturate: node.int_or("saturate", 1)? != 0, round })
}

/// The fact of `x` cast to `to`.
fn cast_fact(x: &Fact, to: DType) -> Fact {
    let mut fact = x.with_dtype(to);
    // Sizes stay followed through casts between integers, and survive a round trip by float.
    if let (Some(elements), true) = (x.elements(), to != DType::Bool) {
        fact.set_elements(elements.to_vec());
    }
    fact
}

fn cast(run: &Run, to: DType, casting: Casting) -> Result<Vec<Tensor>, OpError> {
    let x = run.input(0)?;
    if x.dtype() == to {
        return Ok(vec![x.clone()]);
    }
    if to == DType::F32 {
        let reals = match x.dtype() {
            DType::I64 => Some(reals(run.pool, x, |x: i64| x as f32)),
            DType::I32 => Some(reals(run.pool, x, |x: i32| x as f32)),
            DType::I8 => Some(reals::<i8>(run.pool, x, f32::from)),
            DType::U8 => Some(reals::<u8>(run.pool, x, f32::from)),
            _ => None,
        };
        if let Some(y) = reals {
            return Ok(vec![y]);
        }
    }
    Ok(vec![x.cast(to, casting).map_err(|error| match error {
        TensorError::Number { text, to } => OpError::value("a string", text, format!("a {to}")),
        _ => OpError::DType { index: 0, found: x.dtype() },
    })?])
}

/// The types that are cast most, on every thread.
fn reals<T: Element + Sync>(
    pool: &Pool,
    x: &Tensor,
    real: impl Fn(T) -> f32 + Send + Sync,
) -> Tensor {
    let (mut y, x) = (pool.tensor(DType::F32, x.shape()), x.slice::<T>());
    for_rows(y.slice_mut::<f32>(), 1, |first, y| {
        y.iter_mut().zip(&x[first..]).for_each(|(y, &x)| *y = real(x));
    });
    y
}

impl Operator for Cast {
    fn op_type(&self) -> &'static str {
        "Cast"
    }

    fn since_opset(&self) -> i64 {
        6
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![cast_fact(required(inputs, 0)?, target(node)?)])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::like_input(tensors, &[]))
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let (to, casting) = (target(node)?, casting(node)?);
        Ok(Box::new(move |run: &mut Run| cast(run, to, casting)))
    }

    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        reshape_gradient()
    }
}

/// The type is that of the second input.
pub(crate) struct CastLike;

impl Operator for CastLike {
    fn op_type(&self) -> &'static str {
        "CastLike"
    }

    fn since_opset(&self) -> i64 {
        15
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![cast_fact(required(inputs, 0)?, required(inputs, 1)?.dtype)])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::like_input(tensors, &[]))
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let casting = casting(node)?;
        Ok(Box::new(move |run: &mut Run| cast(run, run.input(1)?.dtype(), casting)))
    }

    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        reshape_gradient()
    }
}

pub(crate) struct BitCast;

impl Operator for BitCast {
    fn op_type(&self) -> &'static str {
        "BitCast"
    }

    fn since_opset(&self) -> i64 {
        26
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![required(inputs, 0)?.with_dtype(target(node)?)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let to = target(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let found = x.dtype();
            if found.bits() != to.bits() || found == DType::String {
                let expected = format!("as many bits as {to}");
                return Err(OpError::value("the input's type", found.name(), expected));
            }
            let bytes = match to {
                // A bool is 0 or 1; any other byte would break what reads it.
                DType::Bool => x.bytes().iter().map(|&byte| u8::from(byte != 0)).collect(),
                _ => x.shared_bytes(),
            };
            let y = Tensor::from_bytes(to, x.shape(), bytes);
            Ok(vec![y.map_err(|_| OpError::DType { index: 0, found })?.aligned()])
        }))
    }
}
