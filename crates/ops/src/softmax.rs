//! Softmax along one axis (opset 13 and later): y = exp(x − max x) / Σ exp(x − max x).
//!
//! Up to opset 12 all axes from `axis` on counted as one; models of those opsets are refused.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::clip::in_place_or_copy;
use crate::fact::resolve_axis;
use crate::kernels::{for_rows, softmax};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct Softmax;

impl Operator for Softmax {
    fn op_type(&self) -> &'static str {
        "Softmax"
    }

    fn since_opset(&self) -> i64 {
        13
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let axis = node.int_or("axis", -1)?;
        Ok(Box::new(move |run: &mut Run| {
            let x = run.typed::<f32>(0)?;
            let shape = x.shape().to_vec();
            let axis = resolve_axis(axis, shape.len())
                .ok_or_else(|| OpError::value("axis", axis, format!("below {}", shape.len())))?;
            let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
            let mut y = in_place_or_copy(run)?;
            if inner == 1 {
                for_rows(y.slice_mut::<f32>(), size, |_, rows| softmax::softmax_rows(rows, size));
                return Ok(vec![y]);
            }
            // Other axes: gathered into rows, normalized, and scattered back.
            let mut rows = run.pool.tensor(DType::F32, &[inner, size]);
            for block in y.slice_mut::<f32>().chunks_exact_mut((size * inner).max(1)) {
                let rows = rows.slice_mut::<f32>();
                (0..block.len()).for_each(|i| rows[i % inner * size + i / inner] = block[i]);
                softmax::softmax_rows(rows, size);
                (0..block.len()).for_each(|i| block[i] = rows[i % inner * size + i / inner]);
            }
            run.pool.recycle(rows);
            Ok(vec![y])
        }))
    }
}
