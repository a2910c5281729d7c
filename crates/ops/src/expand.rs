//! Expand (opset 8 and later): broadcasts a tensor to a shape, in both directions.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::broadcast::{Loops, broadcast_dims, broadcast_shapes};
use crate::channels::{Channels, Place, Port, Tensors, input, output};
use crate::gradient::{gradient, sum_to};
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct Expand;

impl Operator for Expand {
    fn op_type(&self) -> &'static str {
        "Expand"
    }

    fn since_opset(&self) -> i64 {
        8
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, target) = (required(inputs, 0)?, required(inputs, 1)?);
        Ok(vec![match (&x.shape, target.elements(), &target.shape) {
            (Some(shape), Some(target), _) => {
                let mut fact = Fact::new(x.dtype, broadcast_dims(shape, target)?);
                repeat_elements(x, &mut fact);
                fact
            }
            (Some(shape), None, Some(length)) => match length.first().and_then(Dim::known) {
                Some(rank) if (0..64).contains(&rank) => {
                    Fact::new(x.dtype, vec![Dim::Unknown; shape.len().max(rank as usize)])
                }
                _ => Fact::unranked(x.dtype),
            },
            _ => Fact::unranked(x.dtype),
        }])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        let mut channels = Channels::default();
        channels.tie_broadcast(tensors, 0);
        let (rank, out) = (tensors.rank(Port::Input(0))?, tensors.rank(Port::Output(0))?);
        let given = tensors.size(input(1, 0)).filter(|&given| given <= out)?;
        for axis in 0..out {
            // An axis that the input repeats, or lacks, holds the same value everywhere.
            let own = (axis + rank).checked_sub(out).map(|own| input(0, own));
            if own.is_none_or(|own| tensors.size(own) == Some(1)) {
                channels.free.push(output(0, axis));
            }
            if let Some(element) = (axis + given).checked_sub(out) {
                channels.held(tensors, Place::InputElement(1, element), output(0, axis));
            }
        }
        Some(channels)
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(for_every_type(
            |index| index == 0,
            |run: &mut Run| {
                let target: Vec<usize> = run
                    .typed::<i64>(1)?
                    .values::<i64>()
                    .iter()
                    .map(|&size| {
                        let error = || OpError::value("a size", size, "0 or more");
                        usize::try_from(size).map_err(|_| error())
                    })
                    .collect::<Result<_, _>>()?;
                let x = run.input(0)?;
                check_movable(0, x)?;
                let shape = broadcast_shapes(x.shape(), &target)?;
                if shape == x.shape() {
                    return Ok(vec![x.clone()]);
                }
                let mut y = run.pool.declared(x.dtype(), &shape)?;
                by_width!(x, Word => repeat::<Word>(words_mut(&mut y), words(x), x.shape(), &shape));
                Ok(vec![y])
            },
        ))
    }

    /// dx sums what each element was copied to.
    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        gradient(Reads::NOTHING, |run| {
            let dy = run.take_gradient();
            Ok(vec![Some(sum_to(dy, run.shape(0), run.pool).into())])
        })
    }
}

/// A shape vector of one element stays followed when it is repeated.
pub(crate) fn repeat_elements(x: &Fact, fact: &mut Fact) {
    let (Some([element]), Some([length])) = (x.elements(), fact.shape.as_deref()) else { return };
    if let Some(length) = length.known().filter(|length| (0..=64).contains(length)) {
        fact.set_elements(vec![element.clone(); length as usize]);
    }
}

pub(crate) fn repeat<T: Copy>(y: &mut [T], x: &[T], shape: &[usize], target: &[usize]) {
    if y.is_empty() {
        return;
    }
    let loops = Loops::new([shape], target);
    let [stride] = loops.inner_strides();
    let mut rows = y.chunks_exact_mut(loops.inner_size());
    loops.for_each_row(|[start]| {
        let row = rows.next().expect("as many rows as the loops visit");
        if stride == 0 {
            row.fill(x[start]);
        } else {
            row.copy_from_slice(&x[start..start + row.len()]);
        }
    });
}
