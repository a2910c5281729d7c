//! `BiasSoftmax` of ONNX Runtime: softmax over the axes from `axis` on of x + bias. The bias is
//! repeated along inner batch axes (`is_inner_broadcast`: rows of x that share one of the bias stand
//! next to each other) or along outer ones.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::clip::in_place_or_copy;
use crate::fact::resolve_axis;
use crate::kernels::{elementwise, for_rows, softmax};
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Run, required};

pub(crate) struct BiasSoftmax;

impl Operator for BiasSoftmax {
    fn op_type(&self) -> &'static str {
        "BiasSoftmax"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let axis = node.int_or("axis", 1)?;
        let is_inner = node.int_or("is_inner_broadcast", 1)? != 0;
        Ok(Box::new(move |run: &mut Run| {
            let (x, bias) = (run.typed::<f32>(0)?, run.typed::<f32>(1)?);
            let axis = resolve_axis(axis, x.rank())
                .ok_or_else(|| OpError::value("axis", axis, format!("below {}", x.rank())))?;
            let size: usize = x.shape()[axis..].iter().product();
            let (count, bias_count) = (x.element_count(), bias.element_count());
            if count == 0 {
                return Ok(vec![run.pool.tensor(DType::F32, x.shape())]);
            }
            if bias_count == 0 || bias_count % size != 0 || count % bias_count != 0 {
                return Err(OpError::shapes(x.shape(), bias.shape()));
            }
            let (bias_rows, repeats) = (bias_count / size, count / bias_count);
            let mut y = in_place_or_copy(run)?;
            let bias = run.input(1)?.slice::<f32>();
            for_rows(y.slice_mut::<f32>(), size, |first, rows| {
                for (i, row) in rows.chunks_exact_mut(size).enumerate() {
                    let row_index = first + i;
                    let at = if is_inner { row_index / repeats } else { row_index % bias_rows };
                    elementwise::add_assign(row, &bias[at * size..(at + 1) * size]);
                }
                softmax::softmax_rows(rows, size);
            });
            Ok(vec![y])
        }))
    }

    fn widens_half(&self) -> bool {
        true
    }
}
