//! Identity, and Dropout, which is one outside training.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::gradient::reshape_gradient;
use crate::{
    Body, DataKernel, DataRun, Fact, Gradient, Kernel, OpError, Operator, OverData, Run, Training,
    required,
};

pub(crate) struct Identity;

impl Operator for Identity {
    fn op_type(&self) -> &'static str {
        "Identity"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![required(inputs, 0)?.clone()])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| Ok(vec![run.input(0)?.clone()])))
    }

    fn over_data(&self) -> Option<&dyn OverData> {
        Some(self)
    }

    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        reshape_gradient()
    }
}

impl OverData for Identity {
    fn data_kernel(&self, _: &Node, _: Vec<Body>) -> Result<Box<dyn DataKernel>, OpError> {
        Ok(Box::new(|run: &mut DataRun| Ok(vec![run.input(0)?.clone()])))
    }
}

/// The mask, where asked for, is all true.
pub(crate) struct Dropout;

impl Operator for Dropout {
    fn op_type(&self) -> &'static str {
        "Dropout"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok([x.clone(), x.with_dtype(DType::Bool)][..node.outputs.len().min(2)].to_vec())
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let output_count = node.outputs.len();
        Ok(Box::new(move |run: &mut Run| {
            // In training it drops nothing where the ratio is 0; it is 0.5 where none is given.
            let drops = match run.optional(1).and_then(Tensor::to_f64).as_deref() {
                Some([ratio, ..]) => *ratio != 0.0,
                _ => true,
            };
            if drops && run.optional(2).is_some_and(|training| training.bytes() == [1]) {
                return Err(OpError::Unsupported { what: "Dropout in training mode".into() });
            }
            let x = run.input(0)?.clone();
            if output_count == 1 {
                return Ok(vec![x]);
            }
            let mask = Tensor::from_bools(x.shape(), &vec![true; x.element_count()]);
            Ok(vec![x, mask])
        }))
    }
}
