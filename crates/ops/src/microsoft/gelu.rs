//! `Gelu`, `BiasGelu`, `FastGelu` and `QuickGelu` of ONNX Runtime: x·Φ(x) by erf, by erf after a
//! bias, by tanh after an optional bias, and as x·σ(α·x).

use attar_graph::Node;
use attar_tensor::Tensor;

use super::biased;
use crate::clip::in_place_or_copy;
use crate::gelu::by_input;
use crate::gradient::gradient;
use crate::kernels::{elementwise, for_rows, gradient as kernels, normalize};
use crate::normalization_gradient::place;
use crate::row_sums::change_rows;
use crate::{
    Backward, Fact, Gradient, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Reads, Run, Training,
    required,
};

macro_rules! gelus {
    ($($op:ident, $name:literal, $inputs:expr, $node:ident => $kernel:expr, $gradient:expr;)*) => {$(
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

            fn channels(&self, _: &Node, tensors: &$crate::channels::Tensors) -> Option<$crate::channels::Channels> {
                Some($crate::channels::Channels::elementwise(tensors, 0..tensors.inputs.len()))
            }

            fn kernel(
                &self,
                $node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                $kernel
            }

            fn gradient(
                &self,
                $node: &Node,
                _: &Training,
            ) -> Result<Box<dyn Gradient>, OpError> {
                $gradient
            }

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}

gelus! {
    MicrosoftGelu, "Gelu", 1..=1, _node =>
        Ok(biased_loop(elementwise::gelu)), by_input(kernels::gelu);
    BiasGelu, "BiasGelu", 2..=2, _node =>
        Ok(biased_loop(elementwise::gelu)), biased_gradient(kernels::gelu);
    FastGelu, "FastGelu", 1..=2, _node =>
        Ok(biased_loop(elementwise::gelu_tanh)), biased_gradient(kernels::gelu_tanh);
    QuickGelu, "QuickGelu", 1..=1, node => Ok(quick(node.float_or("alpha", 1.702)?)), {
        let alpha = node.float_or("alpha", 1.702)?;
        by_input(move |dy, x| kernels::swish(dy, x, alpha))
    };
}

/// Of f(x + bias): dx = dy·f′(x + bias), dbias = Σ dx over rows.
fn biased_gradient(change: fn(&mut [f32], &[f32])) -> Result<Box<dyn Gradient>, OpError> {
    gradient(Reads::NOTHING.input(0).input(1), move |run: &mut Backward| {
        let mut dx = run.take_gradient();
        let (x, size) = (run.input(0)?.slice::<f32>(), dx.shape().last().copied().unwrap_or(1));
        let mut flows = vec![None; 2];
        let Some(bias) = run.inputs.get(1).and_then(Option::as_ref) else {
            for_rows(dx.slice_mut::<f32>(), 1, |first, dx| change(dx, &x[first..][..dx.len()]));
            place(&mut flows, Some(0), dx, run);
            return Ok(flows);
        };
        let (bias, mut dbias) = (bias.slice::<f32>(), run.tensor(&[size]));
        let sums = dbias.slice_mut::<f32>();
        change_rows(dx.slice_mut::<f32>(), size, sums, run.pool, |first, rows, sums| {
            let mut moved = x[first * size..][..rows.len()].to_vec();
            moved.chunks_exact_mut(size).for_each(|row| elementwise::add_assign(row, bias));
            change(rows, &moved);
            normalize::add_rows(sums, rows);
        });
        place(&mut flows, Some(0), dx, run);
        place(&mut flows, Some(1), dbias, run);
        Ok(flows)
    })
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
