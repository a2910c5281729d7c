//! STFT (opset 17 and later): the Fourier transform of every stretch of a signal, each weighted by
//! a window: `[batch, length, 1 or 2]` → `[batch, frames, terms, 2]`.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::fourier::{Complex, Fourier};
use super::{adjoint, floats, length, length_dim};
use crate::gradient::gradient;
use crate::kernels::for_rows;
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required,
};

pub(crate) struct Stft;

fn is_one_sided(node: &Node) -> Result<bool, OpError> {
    Ok(node.int_or("onesided", 1)? != 0)
}

impl Operator for Stft {
    fn op_type(&self) -> &'static str {
        "STFT"
    }

    fn since_opset(&self) -> i64 {
        17
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=4
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let shape = x.shape.as_deref().unwrap_or_default();
        let at = |axis: usize| shape.get(axis).cloned().unwrap_or(Dim::Unknown);
        let window = inputs.get(2).copied().flatten().and_then(|window| window.shape.as_ref());
        let default = match window.and_then(|shape| shape.first()) {
            Some(size) => size.clone(),
            None if node.input(2).is_some() => Dim::Unknown,
            None => at(1),
        };
        let frame = length_dim(node, inputs, 3, default);
        let step = length_dim(node, inputs, 1, Dim::Unknown);
        let (one, two) = (Dim::Known(1), Dim::Known(2));
        let frames = &(&at(1) - &frame).floor_div(&step) + &one;
        let terms = if is_one_sided(node)? { &frame.floor_div(&two) + &one } else { frame };
        Ok(vec![Fact::new(x.dtype, vec![at(0), frames, terms, two])])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let one_sided = is_one_sided(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let &[batches, size, parts @ (1 | 2)] = x.shape() else {
                let expected = "[batch, length, 1 or 2]";
                return Err(OpError::value("the shape of the signal", x.shape(), expected));
            };
            let step = length(run, 1)?;
            let window = window(run, size)?;
            let frame = window.len();
            let frames = (size - frame) / step + 1;
            let terms = if one_sided { frame / 2 + 1 } else { frame };
            let mut y = run.pool.declared(x.dtype(), &[batches, frames, terms, 2])?;
            let signal = Signal { values: &floats(run, 0)?, parts, size, step, window: &window };
            let fourier = Fourier::new(frame);
            match x.dtype() {
                DType::F32 => signal.write(y.slice_mut(), frames, terms, &fourier, |v| v as f32),
                DType::F64 => signal.write(y.slice_mut(), frames, terms, &fourier, |v| v),
                found => return Err(OpError::DType { index: 0, found }),
            }
            Ok(vec![y])
        }))
    }

    fn gradient(&self, _: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let reads = Reads::NOTHING.input(1).input(2).input(3).input_if(0, training.wants(2));
        gradient(reads, back)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// The weights of a frame of a signal of `size`.
fn window(run: &Run, size: usize) -> Result<Vec<f64>, OpError> {
    let window = run.optional(2).map(|_| floats(run, 2)).transpose()?;
    let frame = match (run.optional(3), &window) {
        (Some(_), _) => length(run, 3)?,
        (None, Some(window)) => window.len(),
        (None, None) => size,
    };
    if frame == 0 || frame > size {
        return Err(OpError::value("the frame length", frame, format!("1 to {size}")));
    }
    let window = window.unwrap_or_else(|| vec![1.0; frame]);
    if window.len() != frame {
        return Err(OpError::value("the window's length", window.len(), frame.to_string()));
    }
    Ok(window)
}

/// dx and dwindow: with g the transposed transform of a frame's gradient, dx += window·g where the
/// frame stood, and dwindow += Re(x̄·g).
fn back(run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
    let dy = run.take_gradient();
    let settings = Run { inputs: run.inputs.clone(), pool: run.pool };
    let &[batches, size, parts] = run.shape(0) else { return Ok(Vec::new()) };
    let (step, window) = (length(&settings, 1)?, window(&settings, size)?);
    let &[_, frames, terms, _] = dy.shape() else { return Ok(Vec::new()) };
    let x = if run.wants(2) { floats(&settings, 0)? } else { Vec::new() };
    let fourier = Fourier::new(window.len());
    let (mut dx, mut dwindow) = (vec![0.0; batches * size * parts], vec![0.0; window.len()]);
    for (index, row) in dy.slice::<f32>().chunks_exact(terms * 2).enumerate() {
        let pairs = row.chunks_exact(2);
        let terms = pairs.map(|pair| Complex { re: pair[0].into(), im: pair[1].into() });
        let found = adjoint::forward_back(&fourier, terms.collect(), window.len());
        let start = index / frames * size + index % frames * step;
        for (n, (g, weight)) in found.iter().zip(&window).enumerate() {
            for (part, g) in [g.re, g.im].into_iter().enumerate().take(parts) {
                let at = (start + n) * parts + part;
                dx[at] += weight * g;
                if let Some(x) = x.get(at) {
                    dwindow[n] += x * g;
                }
            }
        }
    }
    run.pool.recycle(dy);
    let flow = |index: usize, values: &[f64]| {
        run.wants(index).then(|| {
            let mut flow = run.tensor(run.shape(index));
            let places = flow.slice_mut::<f32>().iter_mut().zip(values);
            places.for_each(|(to, &value)| *to = value as f32);
            Flow::from(flow)
        })
    };
    Ok(vec![flow(0, &dx), None, flow(2, &dwindow)])
}

struct Signal<'a> {
    values: &'a [f64],
    /// 1 for real numbers, 2 for complex ones.
    parts: usize,
    size: usize,
    step: usize,
    window: &'a [f64],
}

impl Signal<'_> {
    /// A stretch times the window.
    fn frame(&self, batch: usize, frame: usize) -> Vec<Complex> {
        let start = batch * self.size + frame * self.step;
        let weighted = |(n, &weight): (usize, &f64)| {
            let at = (start + n) * self.parts;
            let im = if self.parts == 2 { self.values[at + 1] } else { 0.0 };
            Complex { re: self.values[at] * weight, im: im * weight }
        };
        self.window.iter().enumerate().map(weighted).collect()
    }

    fn write<T: Send>(
        &self,
        y: &mut [T],
        frames: usize,
        terms: usize,
        fourier: &Fourier,
        round: impl Fn(f64) -> T + Send + Sync,
    ) {
        for_rows(y, terms * 2, |first, rows| {
            for (index, row) in rows.chunks_exact_mut(terms * 2).enumerate() {
                let at = first + index;
                let found = fourier.forward(&self.frame(at / frames, at % frames));
                for (y, value) in row.chunks_exact_mut(2).zip(&found) {
                    y[0] = round(value.re);
                    y[1] = round(value.im);
                }
            }
        });
    }
}
