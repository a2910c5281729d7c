//! `GlobalAveragePool`: the mean over all spatial axes, which stay with size 1.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::kernels::normalize;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct GlobalAveragePool;

impl Operator for GlobalAveragePool {
    fn op_type(&self) -> &'static str {
        "GlobalAveragePool"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![match &x.shape {
            Some(shape) => {
                let dims = shape.iter().enumerate();
                let dims = dims.map(|(i, d)| if i < 2 { d.clone() } else { Dim::Known(1) });
                Fact::new(x.dtype, dims.collect())
            }
            None => Fact::unranked(x.dtype),
        }])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            let x = run.typed::<f32>(0)?;
            if x.rank() < 2 {
                return Err(OpError::value("the input", x.shape(), "batch and channels"));
            }
            let mut shape = x.shape().to_vec();
            shape[2..].fill(1);
            let inner: usize = x.shape()[2..].iter().product();
            let mut y = run.pool.tensor(DType::F32, &shape);
            for (y, plane) in
                y.slice_mut::<f32>().iter_mut().zip(x.slice::<f32>().chunks_exact(inner.max(1)))
            {
                *y = normalize::sum_row(plane) / inner as f32;
            }
            Ok(vec![y])
        }))
    }
}
