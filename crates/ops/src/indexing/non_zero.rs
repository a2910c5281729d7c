//! `NonZero` (opset 9 and later): coordinates of the elements other than zero, `[rank, count]`, in
//! the order of the elements.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::words::{by_width, check_movable, words};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct NonZero;

impl Operator for NonZero {
    fn op_type(&self) -> &'static str {
        "NonZero"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let rank = required(inputs, 0)?.rank().map_or(Dim::Unknown, Dim::from);
        Ok(vec![Fact::new(DType::I64, vec![rank, Dim::Unknown])])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            let x = run.input(0)?;
            check_movable(0, x)?;
            // A float is zero with either sign.
            let sign_free =
                u128::MAX >> (128 - x.dtype().bits() + usize::from(x.dtype().is_float()));
            let found: Vec<usize> = by_width!(x, Word => {
                let sign_free = sign_free as Word;
                let elements = words::<Word>(x).iter().enumerate();
                elements.filter(|(_, x)| **x & sign_free != 0).map(|(index, _)| index).collect()
            });
            let mut y = run.pool.declared(DType::I64, &[x.rank(), found.len()])?;
            let rows = y.slice_mut::<i64>().chunks_exact_mut(found.len().max(1));
            let mut rest = found;
            // The last coordinate is found first.
            for (row, &size) in rows.rev().zip(x.shape().iter().rev()) {
                for (y, rest) in row.iter_mut().zip(&mut rest) {
                    *y = (*rest % size) as i64;
                    *rest /= size;
                }
            }
            Ok(vec![y])
        }))
    }
}
