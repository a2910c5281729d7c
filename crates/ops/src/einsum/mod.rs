//! Einsum (opset 12 and later): Σ over the indices that the output lacks of the product of the
//! operands' elements.
//!
//! Operands are taken in from left to right, two at a time, each time as a batched product of
//! matrices: indices that both have and that are needed later are the batch, those that both have
//! and nothing needs are summed over.

mod backward;
mod contraction;
mod equation;

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::gradient::gradient;
use crate::{
    Backward, Fact, Gradient, Kernel, OpError, Operator, Pool, Reads, Run, Training, required,
};
use backward::flow_back;
use contraction::Operand;
use equation::Equation;

pub(crate) struct Einsum;

fn equation(node: &Node) -> Result<Equation, OpError> {
    let text = node.text("equation")?;
    Equation::parse(text.ok_or_else(|| OpError::value("equation", "absent", "an equation"))?)
}

impl Operator for Einsum {
    fn op_type(&self) -> &'static str {
        "Einsum"
    }

    fn since_opset(&self) -> i64 {
        12
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=usize::MAX
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let dtype = required(inputs, 0)?.dtype;
        let equation = equation(node)?;
        let shapes: Option<Vec<&[Dim]>> =
            inputs.iter().map(|fact| fact.and_then(|fact| fact.shape.as_deref())).collect();
        let Some(shapes) = shapes else { return Ok(vec![Fact::unranked(dtype)]) };
        let indices =
            equation.indices(&shapes.iter().map(|shape| shape.len()).collect::<Vec<_>>())?;
        let dims = indices.output.iter().map(|index| indices.dim(*index, &shapes));
        Ok(vec![Fact::new(dtype, dims.collect())])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let equation = equation(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let count = run.inputs.len();
            let tensors = (0..count).map(|i| run.input(i)).collect::<Result<Vec<_>, _>>()?;
            let ranks: Vec<usize> = tensors.iter().map(|x| x.rank()).collect();
            let indices = equation.indices(&ranks)?;
            let sizes = indices.sizes(&tensors)?;
            for (index, x) in tensors.iter().enumerate() {
                if x.dtype() != tensors[0].dtype() {
                    return Err(OpError::DType { index, found: x.dtype() });
                }
            }
            let operands = tensors.iter().zip(&indices.inputs);
            let operands = operands
                .map(|(x, indices)| Operand::new(run.pool, x, indices, &sizes))
                .collect::<Result<Vec<_>, _>>()?;
            Ok(vec![contracted(operands, &indices.output, run.pool)?])
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let equation = equation(node)?;
        gradient(Reads::ALL_INPUTS, move |run: &mut Backward| flow_back(run, &equation))
    }

    fn widens_half(&self) -> bool {
        true
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], _: &[Fact]) -> Dim {
        let shapes: Option<Vec<&[Dim]>> =
            inputs.iter().map(|fact| fact.and_then(|fact| fact.shape.as_deref())).collect();
        let Some((shapes, equation)) = shapes.zip(equation(node).ok()) else { return Dim::Unknown };
        let ranks: Vec<usize> = shapes.iter().map(|shape| shape.len()).collect();
        let Ok(indices) = equation.indices(&ranks) else { return Dim::Unknown };
        let mut all: Vec<u32> = indices.inputs.concat();
        all.sort_unstable();
        all.dedup();
        all.iter().fold(Dim::Known(1), |product, index| &product * &indices.dim(*index, &shapes))
    }
}

/// The sum over all indices but those of the output of the product of the operands.
fn contracted(operands: Vec<Operand>, output: &[u32], pool: &Pool) -> Result<Tensor, OpError> {
    let mut operands = operands.into_iter();
    let mut product = operands.next().expect("there is at least one operand");
    while let Some(next) = operands.next() {
        let is_needed = |index: &u32| {
            output.contains(index)
                || operands.as_slice().iter().any(|later| later.indices.contains(index))
        };
        product = product.times(next, &is_needed, pool)?;
    }
    product.arranged(output, pool)
}
