//! `Gelu`, `BiasGelu`, `FastGelu` and `QuickGelu` of ONNX Runtime: x·Φ(x) by erf, by erf after a
//! bias, by tanh after an optional bias, and as x·σ(α·x).

use attar_graph::Node;
use attar_tensor::Tensor;

use super::biased;
use crate::clip::in_place_or_copy;
use crate::kernels::{elementwise, for_rows};
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Run, required};

macro_rules! gelus {
    ($($op:ident, $name:literal, $inputs:expr, $node:ident => $kernel:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                $name
            }

            fn domain(&self) -> &'static str {
                MICROSOFT_DOMAIN
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                $inputs
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                let x = required(inputs, 0)?;
                Ok(vec![x.with_dtype(x.dtype)])
            }

            fn kernel(
                &self,
                $node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                $kernel
            }

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}

gelus! {
    MicrosoftGelu, "Gelu", 1..=1, _node => Ok(biased_loop(elementwise::gelu));
    BiasGelu, "BiasGelu", 2..=2, _node => Ok(biased_loop(elementwise::gelu));
    FastGelu, "FastGelu", 1..=2, _node => Ok(biased_loop(elementwise::gelu_tanh));
    QuickGelu, "QuickGelu", 1..=1, node => Ok(quick(node.float_or("alpha", 1.702)?));
}

fn biased_loop(loop_over: fn(&mut [f32])) -> Box<dyn Kernel> {
    Box::new(move |run: &mut Run| Ok(vec![biased(run, loop_over)?]))
}

fn quick(alpha: f32) -> Box<dyn Kernel> {
    /// Values whose gates are kept at once.
    const BLOCK: usize = 1024;
    Box::new(move |run: &mut Run| {
        run.typed::<f32>(0)?;
        let mut y = in_place_or_copy(run)?;
        for_rows(y.slice_mut::<f32>(), 1, |_, values| {
            let mut gates = [0.0; BLOCK];
            for values in values.chunks_mut(BLOCK) {
                let gates = &mut gates[..values.len()];
                gates.iter_mut().zip(&*values).for_each(|(gate, &x)| *gate = alpha * x);
                elementwise::sigmoid(gates);
                values.iter_mut().zip(&*gates).for_each(|(value, &gate)| *value *= gate);
            }
        });
        Ok(vec![y])
    })
}
