//! `EyeLike` (opset 9): ones on a diagonal of a matrix, zeros elsewhere.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::gradient::zero_gradient;
use crate::onnx_type::dtype_attribute;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct EyeLike;

impl Operator for EyeLike {
    fn op_type(&self) -> &'static str {
        "EyeLike"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(dtype_attribute(node, "dtype")?.unwrap_or(x.dtype))])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let (dtype, diagonal) = (dtype_attribute(node, "dtype")?, node.int_or("k", 0)?);
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let &[rows, columns] = x.shape() else {
                return Err(OpError::value("the input's shape", x.shape(), "a matrix"));
            };
            let dtype = dtype.unwrap_or(x.dtype());
            let is_number = dtype == DType::Bool || dtype.bits() >= 8 && dtype != DType::F8E8M0;
            if !is_number || matches!(dtype, DType::Complex64 | DType::Complex128) {
                return Err(OpError::Unsupported { what: format!("a diagonal of {dtype}") });
            }
            let mut y = vec![0_u8; rows * columns];
            for row in 0..rows {
                let column = (row as i64).checked_add(diagonal);
                let column = column.and_then(|column| usize::try_from(column).ok());
                if let Some(column) = column.filter(|&column| column < columns) {
                    y[row * columns + column] = 1;
                }
            }
            let y = Tensor::new(x.shape(), &y).converted(dtype);
            Ok(vec![y.map_err(|_| OpError::DType { index: 0, found: dtype })?])
        }))
    }

    /// The input gives its shape alone.
    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        zero_gradient()
    }
}
