//! `ReverseSequence` (opset 10 and later): the first `length[b]` steps of each batch item in reverse
//! order, the rest as it is; of any type.

use attar_graph::Node;
use attar_tensor::Tensor;

use super::integers;
use crate::gradient::gradient_by_kernel;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct ReverseSequence;

/// Whether batch items are axis 0; time is the other of the first two axes.
fn is_batch_first(node: &Node) -> Result<bool, OpError> {
    match (node.int_or("batch_axis", 1)?, node.int_or("time_axis", 0)?) {
        (0, 1) => Ok(true),
        (1, 0) => Ok(false),
        axes => Err(OpError::value("batch_axis and time_axis", axes, "0 and 1, or 1 and 0")),
    }
}

impl Operator for ReverseSequence {
    fn op_type(&self) -> &'static str {
        "ReverseSequence"
    }

    fn since_opset(&self) -> i64 {
        10
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        is_batch_first(node)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let batch_first = is_batch_first(node)?;
        Ok(for_every_type(
            |index| index == 0,
            move |run: &mut Run| {
                let x = run.input(0)?;
                check_movable(0, x)?;
                let lengths = integers(run, 1)?;
                let [first, second, rest @ ..] = x.shape() else {
                    return Err(OpError::value("the rank of the input", x.rank(), "2 or more"));
                };
                let (batches, times) =
                    if batch_first { (*first, *second) } else { (*second, *first) };
                let is_possible = |&length: &i64| (0..=times as i64).contains(&length);
                if lengths.len() != batches || !lengths.iter().all(is_possible) {
                    let expected = format!("{batches} lengths up to {times}");
                    return Err(OpError::value("the sequence lengths", lengths, expected));
                }
                let inner: usize = rest.iter().product();
                let start = |batch: usize, time: usize| {
                    inner * if batch_first { batch * times + time } else { time * batches + batch }
                };
                let mut y = run.pool.tensor(x.dtype(), x.shape());
                by_width!(x, Word => {
                    let (y, x) = (words_mut::<Word>(&mut y), words::<Word>(x));
                    for (batch, &length) in lengths.iter().enumerate() {
                        let length = length as usize;
                        for time in 0..times {
                            let source = if time < length { length - 1 - time } else { time };
                            let (to, from) = (start(batch, time), start(batch, source));
                            y[to..to + inner].copy_from_slice(&x[from..from + inner]);
                        }
                    }
                });
                Ok(vec![y])
            },
        ))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        gradient_by_kernel(self.kernel(node, &[])?, node.inputs.len())
    }
}
