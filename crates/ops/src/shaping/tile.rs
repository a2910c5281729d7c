//! Tile (opset 6 and later): a tensor repeated along each axis; of any type.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::expand::{repeat, repeat_elements};
use crate::gradient::{gradient, sum_to};
use crate::indexing::integers;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct Tile;

impl Operator for Tile {
    fn op_type(&self) -> &'static str {
        "Tile"
    }

    fn since_opset(&self) -> i64 {
        6
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, repeats) = (required(inputs, 0)?, required(inputs, 1)?);
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let dims = match repeats.elements() {
            Some(repeats) if repeats.len() == shape.len() => {
                shape.iter().zip(repeats).map(|(dim, repeat)| dim * repeat).collect()
            }
            Some(repeats) => {
                let expected = format!("{}, as many as axes", shape.len());
                return Err(OpError::value("the count of repeats", repeats.len(), expected));
            }
            None => vec![Dim::Unknown; shape.len()],
        };
        let mut fact = Fact::new(x.dtype, dims);
        repeat_elements(x, &mut fact);
        Ok(vec![fact])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(for_every_type(
            |index| index == 0,
            |run: &mut Run| {
                let x = run.input(0)?;
                check_movable(0, x)?;
                let repeats = integers(run, 1)?;
                if repeats.len() != x.rank() {
                    let expected = format!("{}, as many as axes", x.rank());
                    return Err(OpError::value("the count of repeats", repeats.len(), expected));
                }
                // Each axis as two: the repeats, then the size.
                let (mut from, mut to, mut shape) = (Vec::new(), Vec::new(), Vec::new());
                for (&size, &count) in x.shape().iter().zip(&repeats) {
                    let error = || OpError::value("a repeat", count, "0 or more, within memory");
                    let count = usize::try_from(count).map_err(|_| error())?;
                    shape.push(size.checked_mul(count).ok_or_else(error)?);
                    from.extend([1, size]);
                    to.extend([count, size]);
                }
                let mut y = run.pool.declared(x.dtype(), &shape)?;
                by_width!(x, Word => repeat::<Word>(words_mut(&mut y), words(x), &from, &to));
                Ok(vec![y])
            },
        ))
    }

    /// dx sums the repeats.
    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        gradient(Reads::NOTHING, |run| {
            let dy = run.take_gradient();
            let shape = run.shape(0);
            let (mut from, mut to) = (Vec::new(), Vec::new());
            for (&size, &whole) in shape.iter().zip(dy.shape()) {
                from.extend([1, size]);
                to.extend([whole.checked_div(size).unwrap_or(0), size]);
            }
            let dx = sum_to(dy.reshaped(&to), &from, run.pool);
            Ok(vec![Some(dx.reshaped(shape).into())])
        })
    }
}
