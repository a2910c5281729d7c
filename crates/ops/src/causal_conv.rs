//! `CausalConvWithState` (opset 27): each channel convolved with its own kernel over this position
//! and those before it, yₜ = activation(Σᵢ wᵢ·xₜ₊ᵢ₋ₖ₊₁ + b); what lies before the input is the
//! past state, or zeros.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::channels::{Axis, Channels, Port, Tensors, input, output};
use crate::gradient::gradient;
use crate::kernels::{elementwise, slope};
use crate::real::Real;
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required,
};

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

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        let mut channels = Channels::default();
        let channel = input(0, 1);
        channels.tie(tensors, channel, output(0, 1));
        for (port, axis) in
            [(Port::Input(1), 0), (Port::Input(2), 0), (Port::Input(3), 1), (Port::Output(1), 1)]
        {
            if tensors.rank(port).is_some() {
                channels.tie(tensors, Axis { port, axis }, channel);
            }
        }
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let is_silu = is_silu(node)?;
        Ok(Box::new(move |run: &mut Run| match run.input(0)?.dtype() {
            DType::F64 => convolve::<f64>(run, is_silu.then_some(silu_f64)),
            _ => convolve::<f32>(run, is_silu.then_some(elementwise::silu)),
        }))
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let is_silu = is_silu(node)?;
        let past = training.wants(1) || is_silu;
        let reads = Reads::NOTHING.input(0).input(1).input_if(2, is_silu).input_if(3, past);
        gradient(reads, move |run| back(run, is_silu))
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

fn silu_f64(data: &mut [f64]) {
    data.iter_mut().for_each(|x| *x /= 1.0 + (-*x).exp());
}

fn is_silu(node: &Node) -> Result<bool, OpError> {
    match node.text("activation")?.unwrap_or("none") {
        "none" => Ok(false),
        "silu" | "swish" => Ok(true),
        other => Err(OpError::value("activation", other, "none, silu or swish")),
    }
}

fn convolve<T: Real>(run: &Run, silu: Option<fn(&mut [T])>) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (run.typed::<T>(0)?, run.typed::<T>(1)?);
    let (&[batch, channels, length], &[w_channels, 1, size]) = (x.shape(), w.shape()) else {
        return Err(OpError::shapes(x.shape(), w.shape()));
    };
    if channels != w_channels || size == 0 {
        return Err(OpError::shapes(x.shape(), w.shape()));
    }
    let optional = |index: usize, shape: &[usize]| match run.optional(index) {
        None => Ok(None),
        Some(_) if run.typed::<T>(index)?.shape() != shape => {
            Err(OpError::shapes(run.input(index)?.shape(), shape))
        }
        Some(tensor) => Ok(Some(tensor.slice::<T>())),
    };
    let bias = optional(2, &[channels])?;
    let past = optional(3, &[batch, channels, size - 1])?;
    let dtype = x.dtype();
    let (x, w) = (x.slice::<T>(), w.slice::<T>());
    let mut y = run.pool.tensor(dtype, &[batch, channels, length]);
    let mut present = run.pool.tensor(dtype, &[batch, channels, size - 1]);
    let (out, state) = (y.slice_mut::<T>(), present.slice_mut::<T>());
    let mut padded = vec![T::ZERO; size - 1 + length];
    for row in 0..batch * channels {
        let channel = row % channels;
        let kernel = &w[channel * size..(channel + 1) * size];
        if let Some(past) = past {
            padded[..size - 1].copy_from_slice(&past[row * (size - 1)..(row + 1) * (size - 1)]);
        }
        padded[size - 1..].copy_from_slice(&x[row * length..(row + 1) * length]);
        let out = &mut out[row * length..(row + 1) * length];
        out.fill(bias.map_or(T::ZERO, |bias| bias[channel]));
        for (offset, &weight) in kernel.iter().enumerate() {
            let terms = out.iter_mut().zip(&padded[offset..]);
            terms.for_each(|(y, &x)| *y += weight * x);
        }
        state[row * (size - 1)..(row + 1) * (size - 1)].copy_from_slice(&padded[length..]);
    }
    if let Some(silu) = silu {
        silu(out);
    }
    Ok(vec![y, present])
}

/// With dz = dy·activation′(z) and x behind the past as p: dp[t + i] = Σ w[i]·dz[t], and the
/// present state's flow where it was copied from; dw[i] = Σ dz[t]·p[t + i]; db = Σ dz.
fn back(run: &mut Backward, is_silu: bool) -> Result<Vec<Option<Flow>>, OpError> {
    let flows = [run.gradients.first().cloned().flatten(), run.gradient(1).cloned()];
    let (x, w) = (run.input(0)?, run.input(1)?);
    let (length, channels) = (x.shape()[2], x.shape()[1]);
    let size = w.shape()[2];
    let (values, weights) = (x.slice::<f32>(), w.slice::<f32>());
    let optional =
        |index: usize| run.inputs.get(index).and_then(Option::as_ref).map(Tensor::slice::<f32>);
    let (bias, past) = (optional(2), optional(3));
    let before = size - 1;
    let mut dx = run.tensor(x.shape());
    let mut dpast = run.zeros(&[x.shape()[0], channels, before]);
    let (mut dw, mut db) = (run.zeros(w.shape()), run.zeros(&[channels]));
    let mut padded = vec![0.0; before + length];
    let (mut dpadded, mut dz, mut z) = (vec![0.0; before + length], vec![0.0; length], vec![]);
    for row in 0..x.shape()[0] * channels {
        let channel = row % channels;
        let kernel = &weights[channel * size..(channel + 1) * size];
        if let Some(past) = past {
            padded[..before].copy_from_slice(&past[row * before..(row + 1) * before]);
        }
        padded[before..].copy_from_slice(&values[row * length..(row + 1) * length]);
        match &flows[0] {
            Some(dy) => dz.copy_from_slice(&dy.slice::<f32>()[row * length..(row + 1) * length]),
            None => dz.fill(0.0),
        }
        if is_silu {
            z.clear();
            z.resize(length, bias.map_or(0.0, |bias| bias[channel]));
            for (offset, &weight) in kernel.iter().enumerate() {
                z.iter_mut().zip(&padded[offset..]).for_each(|(z, &x)| *z += weight * x);
            }
            slope::silu(&mut dz, &z);
        }
        dpadded.fill(0.0);
        if let Some(present) = &flows[1] {
            let present = &present.slice::<f32>()[row * before..(row + 1) * before];
            dpadded[length..].copy_from_slice(present);
        }
        let dw = &mut dw.slice_mut::<f32>()[channel * size..(channel + 1) * size];
        for (offset, (dw, &weight)) in dw.iter_mut().zip(kernel).enumerate() {
            let terms = dpadded[offset..].iter_mut().zip(&dz);
            terms.for_each(|(dp, &dz)| *dp += weight * dz);
            *dw += dz.iter().zip(&padded[offset..]).map(|(dz, x)| dz * x).sum::<f32>();
        }
        db.slice_mut::<f32>()[channel] += dz.iter().sum::<f32>();
        dpast.slice_mut::<f32>()[row * before..(row + 1) * before]
            .copy_from_slice(&dpadded[..before]);
        dx.slice_mut::<f32>()[row * length..(row + 1) * length].copy_from_slice(&dpadded[before..]);
    }
    let all = [dx, dw, db, dpast].into_iter().enumerate();
    Ok(all.map(|(index, flow)| run.wants(index).then(|| flow.into())).collect())
}
