//! Trilu (opset 14 and later): the upper or lower triangle of matrices, zero elsewhere; the
//! diagonal shifted by `k`.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::gradient::gradient_by_kernel;
use crate::indexing::integers_of;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct Trilu;

impl Operator for Trilu {
    fn op_type(&self) -> &'static str {
        "Trilu"
    }

    fn since_opset(&self) -> i64 {
        14
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let upper = node.int_or("upper", 1)? != 0;
        Ok(for_every_type(
            |index| index == 0,
            move |run: &mut Run| {
                let x = run.input(0)?;
                check_movable(0, x)?;
                let k = match run.optional(1) {
                    Some(k) => *integers_of(k, 1)?.first().unwrap_or(&0),
                    None => 0,
                };
                let &[.., rows, columns] = x.shape() else {
                    return Err(OpError::value("the rank of the input", x.rank(), "2 or more"));
                };
                let mut y = run.pool.tensor(x.dtype(), x.shape());
                if x.element_count() > 0 {
                    by_width!(x, Word => {
                        let lines = words_mut::<Word>(&mut y).chunks_exact_mut(columns);
                        let lines = lines.zip(words::<Word>(x).chunks_exact(columns)).enumerate();
                        for (line, (y, x)) in lines {
                            // The first column of the upper triangle; the lower keeps one more.
                            let first = ((line % rows) as i64).saturating_add(k);
                            let first = if upper { first } else { first.saturating_add(1) };
                            let split = first.clamp(0, columns as i64) as usize;
                            y.copy_from_slice(x);
                            if upper { y[..split].fill(0) } else { y[split..].fill(0) }
                        }
                    });
                }
                Ok(vec![y])
            },
        ))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        gradient_by_kernel(self.kernel(node, &[])?, node.inputs.len())
    }
}
