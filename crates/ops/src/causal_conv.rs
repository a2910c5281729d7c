//! `CausalConvWithState` (opset 27): each channel convolved with its own kernel over this position
//! and those before it, yₜ = activation(Σᵢ wᵢ·xₜ₊ᵢ₋ₖ₊₁ + b); what lies before the input is the
//! past state, or zeros.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::kernels::elementwise;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct CausalConvWithState;

impl Operator for CausalConvWithState {
    fn op_type(&self) -> &'static str {
        "CausalConvWithState"
    }

    fn since_opset(&self) -> i64 {
        27
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=4
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, w) = (required(inputs, 0)?, required(inputs, 1)?);
        let state = match (x.shape.as_deref(), w.shape.as_deref()) {
            (Some([batch, channels, _]), Some([.., size])) => {
                let dims = vec![batch.clone(), channels.clone(), size - &Dim::Known(1)];
                Fact::new(x.dtype, dims)
            }
            _ => Fact::unranked(x.dtype),
        };
        let mut outputs = vec![x.with_dtype(x.dtype), state];
        outputs.truncate(node.outputs.len());
        Ok(outputs)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let is_silu = match node.text("activation")?.unwrap_or("none") {
            "none" => false,
            "silu" | "swish" => true,
            other => return Err(OpError::value("activation", other, "none, silu or swish")),
        };
        Ok(Box::new(move |run: &mut Run| convolve(run, is_silu)))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], _: &[Fact]) -> Dim {
        let shape = |index: usize| inputs.get(index).copied().flatten();
        let size = shape(1).and_then(|w| w.shape.as_ref()?.last().cloned());
        let count = shape(0).map_or(Dim::Unknown, Fact::element_count);
        &count * &size.unwrap_or(Dim::Unknown)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

fn convolve(run: &mut Run, is_silu: bool) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (run.typed::<f32>(0)?, run.typed::<f32>(1)?);
    let (&[batch, channels, length], &[w_channels, 1, size]) = (x.shape(), w.shape()) else {
        return Err(OpError::shapes(x.shape(), w.shape()));
    };
    if channels != w_channels || size == 0 {
        return Err(OpError::shapes(x.shape(), w.shape()));
    }
    let optional = |index: usize, shape: &[usize]| match run.optional(index) {
        None => Ok(None),
        Some(_) if run.typed::<f32>(index)?.shape() != shape => {
            Err(OpError::shapes(run.input(index)?.shape(), shape))
        }
        Some(tensor) => Ok(Some(tensor.slice::<f32>())),
    };
    let bias = optional(2, &[channels])?;
    let past = optional(3, &[batch, channels, size - 1])?;
    let (x, w) = (x.slice::<f32>(), w.slice::<f32>());
    let mut y = run.pool.tensor(DType::F32, &[batch, channels, length]);
    let mut present = run.pool.tensor(DType::F32, &[batch, channels, size - 1]);
    let (out, state) = (y.slice_mut::<f32>(), present.slice_mut::<f32>());
    let mut padded = vec![0.0; size - 1 + length];
    for row in 0..batch * channels {
        let channel = row % channels;
        let kernel = &w[channel * size..(channel + 1) * size];
        if let Some(past) = past {
            padded[..size - 1].copy_from_slice(&past[row * (size - 1)..(row + 1) * (size - 1)]);
        }
        padded[size - 1..].copy_from_slice(&x[row * length..(row + 1) * length]);
        let out = &mut out[row * length..(row + 1) * length];
        out.fill(bias.map_or(0.0, |bias| bias[channel]));
        for (offset, &weight) in kernel.iter().enumerate() {
            let terms = out.iter_mut().zip(&padded[offset..]);
            terms.for_each(|(y, &x)| *y += weight * x);
        }
        state[row * (size - 1)..(row + 1) * (size - 1)].copy_from_slice(&padded[length..]);
    }
    if is_silu {
        let mut gate = out.to_vec();
        elementwise::sigmoid(&mut gate);
        out.iter_mut().zip(&gate).for_each(|(y, &gate)| *y *= gate);
    }
    Ok(vec![y, present])
}
