//! `TensorScatter` (opset 24 and later): y = cache, then y[b, …, (start[b] + s), …] = update[b, …,
//! s, …] along one axis; places beyond the end are refused (`linear`) or begin anew (`circular`).

use attar_graph::Node;
use attar_tensor::Tensor;

use super::{axis_of, integers_of, reduction::Reduction};
use crate::moves::moved_gradient;
use crate::words::{check_movable, for_every_type};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct TensorScatter;

/// Whether places beyond the end begin anew.
fn is_circular(node: &Node) -> Result<bool, OpError> {
    match node.text("mode")? {
        None | Some("linear") => Ok(false),
        Some("circular") => Ok(true),
        Some(other) => Err(OpError::value("mode", other, "linear or circular")),
    }
}

impl Operator for TensorScatter {
    fn op_type(&self) -> &'static str {
        "TensorScatter"
    }

    fn since_opset(&self) -> i64 {
        24
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let cache = required(inputs, 0)?;
        Ok(vec![cache.with_dtype(cache.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        let circular = is_circular(&node)?;
        Ok(for_every_type(
            |index| index < 2,
            move |run: &mut Run| {
                let (cache, update) = (run.input(0)?, run.input(1)?);
                check_movable(0, cache)?;
                let axis = axis_of(&node, -2, cache.rank())?;
                let starts = match run.optional(2) {
                    Some(starts) => integers_of(starts, 2)?,
                    None => vec![0; cache.shape()[0]],
                };
                let places = places(cache.shape(), update.shape(), axis, &starts, circular)?;
                let size = cache.shape()[axis + 1..].iter().product();
                let update = update.clone();
                let mut y = run.inputs[0].take().expect("it was read above");
                Reduction::None.scatter(&mut y, &update, &places, size)?;
                Ok(vec![y])
            },
        ))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let kernel = self.kernel(node, &[])?;
        moved_gradient(kernel, |index| index < 2, node.inputs.len())
    }
}

/// Where each row of the update begins in the cache.
fn places(
    cache: &[usize],
    update: &[usize],
    axis: usize,
    starts: &[i64],
    circular: bool,
) -> Result<Vec<usize>, OpError> {
    let fits = cache.len() == update.len()
        && axis > 0
        && (0..cache.len()).all(|i| i == axis || cache[i] == update[i])
        && starts.len() == cache[0];
    if !fits {
        return Err(OpError::shapes(cache, update));
    }
    let (size, length) = (cache[axis], update[axis]);
    let inner: usize = cache[axis + 1..].iter().product();
    let outer: usize = cache[1..axis].iter().product();
    let mut places = Vec::new();
    for (batch, &start) in starts.iter().enumerate() {
        let error = || OpError::value("a write index", start, format!("room for {length} more"));
        let start = usize::try_from(start).ok().filter(|&start| start <= size);
        let start = start.ok_or_else(error)?;
        if length > size || (!circular && start + length > size) {
            return Err(error());
        }
        for row in batch * outer..(batch + 1) * outer {
            places.extend((start..start + length).map(|at| (row * size + at % size) * inner));
        }
    }
    Ok(places)
}
