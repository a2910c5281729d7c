//! `BatchNormalization` for inference (opset 9 and later):
//! y = (x − mean) / √(variance + ε) · scale + bias per channel (Ioffe & Szegedy, 2015,
//! arXiv:1502.03167).

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct BatchNormalization;

impl Operator for BatchNormalization {
    fn op_type(&self) -> &'static str {
        "BatchNormalization"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        5..=5
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let epsilon = node.float_or("epsilon", 1e-5)?;
        if node.int_or("training_mode", 0)? != 0 || node.outputs.len() > 1 {
            return Err(OpError::Unsupported {
                what: "BatchNormalization in training mode".into(),
            });
        }
        Ok(Box::new(move |run: &mut Run| {
            let x = run.typed::<f32>(0)?;
            let channels = *x.shape().get(1).unwrap_or(&1);
            for index in 1..5 {
                let parameter = run.typed::<f32>(index)?;
                if parameter.shape() != [channels] {
                    return Err(OpError::shapes(x.shape(), parameter.shape()));
                }
            }
            let [scale, bias, mean, variance] =
                [1, 2, 3, 4].map(|i| run.inputs[i].as_ref().map_or(&[][..], Tensor::slice::<f32>));
            let inner: usize = x.shape().iter().skip(2).product();
            let mut y = run.pool.tensor(DType::F32, x.shape());
            let planes = y.slice_mut::<f32>().chunks_exact_mut(inner.max(1));
            for (index, (y, x)) in
                planes.zip(x.slice::<f32>().chunks_exact(inner.max(1))).enumerate()
            {
                let c = index % channels;
                let factor = scale[c] / (variance[c] + epsilon).sqrt();
                let shift = bias[c] - mean[c] * factor;
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * factor + shift);
            }
            Ok(vec![y])
        }))
    }
}
