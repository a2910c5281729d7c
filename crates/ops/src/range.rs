//! Range (opset 11 and later): start, start + delta, … while below (above) limit.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct Range;

impl Operator for Range {
    fn op_type(&self) -> &'static str {
        "Range"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let facts = [required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?];
        let element = |i: usize| facts[i].elements().and_then(<[Dim]>::first).cloned();
        let count = match [element(0), element(1), element(2)] {
            [Some(start), Some(limit), Some(Dim::Known(1))] => &limit - &start,
            _ => Dim::Unknown,
        };
        Ok(vec![Fact::new(facts[0].dtype, vec![count])])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            let dtype = run.input(0)?.dtype();
            let scalar = |index: usize| -> Result<f64, OpError> {
                let tensor = run.input(index)?;
                match tensor.to_f64() {
                    Some(values) if values.len() == 1 => Ok(values[0]),
                    _ => Err(OpError::value("a bound", tensor.shape(), "a scalar")),
                }
            };
            let (start, limit, delta) = (scalar(0)?, scalar(1)?, scalar(2)?);
            let count = ((limit - start) / delta).ceil().max(0.0);
            if count.is_nan() || count > f64::from(u32::MAX) {
                return Err(OpError::value("the count", count, "finite"));
            }
            let count = count as usize;
            let y = match dtype {
                DType::F32 => {
                    let value = |i| start as f32 + i as f32 * delta as f32;
                    Tensor::new(&[count], &(0..count).map(value).collect::<Vec<_>>())
                }
                DType::F64 => {
                    let value = |i| start + i as f64 * delta;
                    Tensor::new(&[count], &(0..count).map(value).collect::<Vec<_>>())
                }
                _ => {
                    let value = |i| start as i64 + i as i64 * delta as i64;
                    Tensor::new(&[count], &(0..count).map(value).collect::<Vec<_>>())
                        .converted(dtype)
                        .map_err(|_| OpError::DType { index: 0, found: dtype })?
                }
            };
            Ok(vec![y])
        }))
    }
}
