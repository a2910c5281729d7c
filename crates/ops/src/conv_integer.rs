//! `ConvInteger` (opset 10): y = Σ (x − `x_zero)·(w` − `w_zero`) in 32-bit integers.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::conv::infer_fact;
use crate::conv::int8::Int8Weights;
use crate::conv::integer::{FLIP, Job, convolve, packed, zero_of_bytes};
use crate::kernels::sums::Levels;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct ConvInteger;

impl Operator for ConvInteger {
    fn op_type(&self) -> &'static str {
        "ConvInteger"
    }

    fn since_opset(&self) -> i64 {
        10
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=4
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, w) = (required(inputs, 0)?, required(inputs, 1)?);
        Ok(vec![infer_fact(node, x, w, DType::I32, false)?])
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let constant = |index: usize| constants.get(index).copied().flatten();
        let (w, zero) = (constant(1), constant(3));
        let is_fixed = node.input(3).is_none() || zero.is_some();
        if let Some(w) = w.filter(|_| is_fixed) {
            let weights = packed::<i32>(node, w, zero, [1, 3])?;
            return Ok(Box::new(move |run: &mut Run| sums(run, &weights)));
        }
        let (node, held) = (node.clone(), w.cloned());
        Ok(Box::new(move |run: &mut Run| {
            let w = run.optional(1).or(held.as_ref()).ok_or(OpError::MissingInput { index: 1 })?;
            sums(run, &packed::<i32>(&node, w, run.optional(3), [1, 3])?)
        }))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        crate::conv::macs(inputs.get(1).copied().flatten(), outputs)
    }

    fn keeps_constant(&self, input: usize) -> bool {
        input == 1
    }
}

fn sums(run: &Run, weights: &Int8Weights) -> Result<Vec<Tensor>, OpError> {
    let x = run.input(0)?;
    let x_zero = match run.optional(2) {
        Some(zero) => zero_of_bytes(zero, 2)?,
        None if x.dtype() == DType::I8 => FLIP,
        None => 0,
    };
    let job = Job::<i32> {
        weights,
        outputs: &weights.outputs(None, x_zero, &[0.0]),
        x_zero,
        levels: Levels::ALL,
        is_channels_last: false,
        after: &|_, _| {},
    };
    Ok(vec![convolve(run.pool, x, &job)?])
}
