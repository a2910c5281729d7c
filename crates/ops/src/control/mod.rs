//! Operators that run graphs: If, Loop and Scan.

mod if_;
mod loop_;
mod scan;

pub(crate) use if_::If;
pub(crate) use loop_::Loop;
pub(crate) use scan::Scan;

use attar_graph::{AttributeValue, Dim, Graph, Node};
use attar_tensor::{DType, Tensor};

use crate::{Body, Datum, Fact, OpError};

/// Takes the body held by `attribute` out of a node's bodies.
fn take_body(bodies: &mut Vec<Body>, attribute: &str) -> Result<Body, OpError> {
    let index = bodies.iter().position(|body| body.attribute() == attribute);
    let missing = || OpError::value(&format!("attribute `{attribute}`"), "absent", "a graph");
    index.map(|index| bodies.swap_remove(index)).ok_or_else(missing)
}

/// The graph in `attribute`.
fn graph_of<'a>(node: &'a Node, attribute: &str) -> Result<&'a Graph, OpError> {
    match node.attribute(attribute) {
        Some(AttributeValue::Graph(graph)) => Ok(graph),
        found => {
            let found = found.map_or("absent", AttributeValue::kind);
            Err(OpError::value(&format!("attribute `{attribute}`"), found, "a graph"))
        }
    }
}

/// A condition: a bool tensor with one element.
fn condition(tensor: &Tensor) -> Result<bool, OpError> {
    if tensor.dtype() != DType::Bool || tensor.element_count() != 1 {
        let found = format!("{}{:?}", tensor.dtype(), tensor.shape());
        return Err(OpError::value("the condition", found, "one bool"));
    }
    Ok(tensor.values::<u8>()[0] != 0)
}

/// A datum that a body must give as a tensor.
fn body_tensor(datum: Datum, what: &str) -> Result<Tensor, OpError> {
    match datum {
        Datum::Tensor(tensor) => Ok(tensor),
        other => Err(OpError::value(what, other.kind(), "a tensor")),
    }
}

/// What holds of a value that is either of two: the same type, and the sizes both agree on.
fn either(a: &Fact, b: &Fact) -> Option<Fact> {
    if a.dtype != b.dtype {
        return None;
    }
    Some(match (&a.shape, &b.shape) {
        (Some(x), Some(y)) if x.len() == y.len() => {
            let dims = x.iter().zip(y);
            let same = dims.map(|(x, y)| if x.same_as(y) { x.clone() } else { Dim::Unknown });
            Fact::new(a.dtype, same.collect())
        }
        _ => Fact::unranked(a.dtype),
    })
}

/// Tensors of one type and shape, stacked along a new axis. `None` of them gives what `empty`
/// says, since their shape is not known.
fn stacked(
    tensors: &[Tensor],
    axis: i64,
    reversed: bool,
    empty: impl FnOnce() -> Result<Tensor, OpError>,
) -> Result<Tensor, OpError> {
    let Some(first) = tensors.first() else { return empty() };
    if let Some(other) = tensors.iter().find(|t| t.shape() != first.shape()) {
        return Err(OpError::shapes(first.shape(), other.shape()));
    }
    if let Some(other) = tensors.iter().find(|t| t.dtype() != first.dtype()) {
        let expected = first.dtype().name();
        return Err(OpError::value("the type of a later iteration", other.dtype(), expected));
    }
    let axis = crate::fact::resolve_axis(axis, first.rank() + 1)
        .ok_or_else(|| OpError::value("axis", axis, format!("one of {}", first.rank() + 1)))?;
    let mut shape = first.shape().to_vec();
    shape.insert(axis, tensors.len());
    let order: Vec<&Tensor> =
        if reversed { tensors.iter().rev().collect() } else { tensors.iter().collect() };
    let outer: usize = first.shape()[..axis].iter().product();
    if first.dtype() == DType::String {
        let block = first.element_count() / outer.max(1);
        let strings = (0..outer).flat_map(|i| {
            order.iter().flat_map(move |t| t.strings()[i * block..(i + 1) * block].to_vec())
        });
        return Ok(Tensor::from_strings(&shape, strings.collect()).expect("counts were kept"));
    }
    if first.dtype().bits() % 8 != 0 {
        return Err(OpError::Unsupported { what: format!("stacking {}", first.dtype()) });
    }
    let block = first.size_bytes() / outer.max(1);
    let mut bytes = Vec::with_capacity(first.size_bytes() * tensors.len());
    for i in 0..outer {
        order.iter().for_each(|t| bytes.extend_from_slice(&t.bytes()[i * block..(i + 1) * block]));
    }
    let tensor = Tensor::from_bytes(first.dtype(), &shape, bytes.into());
    Ok(tensor.expect("sizes were kept").aligned())
}
