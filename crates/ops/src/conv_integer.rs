//! `ConvInteger` (opset 10): y = Σ (x − `x_zero)·(w` − `w_zero`) in 32-bit integers.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::conv::infer_fact;
use crate::conv::integer::{IntegerWeights, ZeroPoints};
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
        let constant = constants.get(1).copied().flatten();
        let packed = constant.map(|w| IntegerWeights::new(node, w, 1)).transpose()?;
        let node = node.clone();
        Ok(Box::new(move |run: &mut Run| {
            let fresh;
            let weights = if let Some(packed) = &packed {
                packed
            } else {
                fresh = IntegerWeights::new(&node, run.input(1)?, 1)?;
                &fresh
            };
            let zeros = ZeroPoints::new(run.optional(2), run.optional(3), weights.shape[0])?;
            Ok(vec![weights.run(run.pool, run.input(0)?, &zeros, |_, sum| sum)?])
        }))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        crate::conv::macs(inputs.get(1).copied().flatten(), outputs)
    }

    fn keeps_constant(&self, input: usize) -> bool {
        input == 1
    }
}
