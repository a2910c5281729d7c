//! Operators of `ai.onnx.ml` that need no model of their own: `ArrayFeatureExtractor` picks columns,
//! `Binarizer` is 1 above a threshold and 0 elsewhere.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::gather::Gather;
use crate::gradient::zero_gradient;
use crate::moves::moved_gradient;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

pub(crate) struct ArrayFeatureExtractor;

pub(crate) struct Binarizer;

impl Operator for ArrayFeatureExtractor {
    fn op_type(&self) -> &'static str {
        "ArrayFeatureExtractor"
    }

    fn domain(&self) -> &'static str {
        "ai.onnx.ml"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, columns) = (required(inputs, 0)?, required(inputs, 1)?);
        let Some((_, outer)) = x.shape.as_ref().and_then(|shape| shape.split_last()) else {
            return Ok(vec![Fact::unranked(x.dtype)]);
        };
        let outer = if outer.is_empty() { &[Dim::Known(1)] } else { outer };
        Ok(vec![Fact::new(x.dtype, [outer, &[columns.element_count()]].concat())])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = Node::new("Gather", "", &[], &[]).with_attribute("axis", -1_i64);
        let gather = Gather.kernel(&node, &[])?;
        Ok(Box::new(move |run: &mut Run| {
            let (x, columns) = (run.input(0)?, run.input(1)?);
            // A vector is one row.
            let row = [&[1], x.shape()].concat();
            let x = if x.rank() == 1 { x.reshaped(&row) } else { x.clone() };
            let columns = columns.reshaped(&[columns.element_count()]);
            gather.run(&mut Run { inputs: vec![Some(x), Some(columns)], pool: run.pool })
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let kernel = self.kernel(node, &[])?;
        moved_gradient(kernel, |index| index == 0, node.inputs.len())
    }
}

impl Operator for Binarizer {
    fn op_type(&self) -> &'static str {
        "Binarizer"
    }

    fn domain(&self) -> &'static str {
        "ai.onnx.ml"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let threshold = f64::from(node.float_or("threshold", 0.0)?);
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let error = OpError::DType { index: 0, found: x.dtype() };
            let Some(values) = x.to_f64() else { return Err(error) };
            let bits: Vec<u8> = values.iter().map(|&x| u8::from(x > threshold)).collect();
            let y = Tensor::new(x.shape(), &bits).converted(x.dtype());
            Ok(vec![y.map_err(|_| error)?])
        }))
    }

    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        zero_gradient()
    }
}
