//! Batch normalization in training, with the activation behind it, in f32 over rows of channels.
//!
//! Forward: mean μ and variance σ² of each channel over all rows, z = γ·(x − μ)/√(σ² + ε) + β,
//! y = f(z). Backward, with s = 1/√(σ² + ε), g = dy·f′(z) and m rows:
//!
//! dβ = Σ g, dγ = s·Σ g·(x − μ), dx = γ·s·(g − dβ/m − s·(x − μ)·dγ/m).
//!
//! z is computed once more, so that only x is kept. With frozen statistics the last two terms
//! of dx are not there.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::conv::layout::{to_channels_first, to_channels_last};
use crate::conv::settings::Fused;
use crate::kernels::batch_normalization::{
    Line, Mix, add_flows, add_rows, add_squares, flow_back, lines,
};
use crate::kernels::channels_last::Activation;
use crate::kernels::for_rows;
use crate::{Backward, Flow, Forward, Gradient, Kernel, OpError, Pool, Reads, Run, Training};

pub(super) struct Norm {
    epsilon: f32,
    momentum: f32,
    /// Whether mean and variance are those of the batch.
    is_training: bool,
    is_channels_last: bool,
    activation: Activation,
    reads: Reads,
    /// Running statistics that the node itself gives.
    output_count: usize,
}

/// What a forward run finds.
pub(super) struct Normalized {
    pub(super) y: Tensor,
    mean: Vec<f32>,
    /// σ², of the batch or as it was given.
    variance: Vec<f32>,
    rows: usize,
}

/// # Errors
/// Attributes that the operator does not take.
pub(super) fn gradient(
    node: &Node,
    training: &Training,
    is_channels_last: bool,
) -> Result<Box<dyn Gradient>, OpError> {
    let is_asked = node.int_or("training_mode", 0)? != 0;
    let is_training = is_asked || training.wants(1) || training.wants(2);
    let mut norm = Norm::new(node, is_training, is_channels_last)?;
    let is_plain = norm.activation == Activation::None;
    norm.reads = Reads::NOTHING.input(1).input_if(2, !is_plain);
    norm.reads = norm.reads.input_if(0, is_training || !is_plain);
    norm.output_count = node.outputs.len();
    Ok(Box::new(norm))
}

impl Norm {
    /// # Errors
    /// Attributes that the operator does not take.
    pub(super) fn new(
        node: &Node,
        is_training: bool,
        is_channels_last: bool,
    ) -> Result<Self, OpError> {
        let fused = Fused::new(node)?;
        let activation = fused.finish.activation;
        let is_known = fused.function.is_none()
            && matches!(
                activation,
                Activation::None | Activation::Clamp(..) | Activation::HardSwish(..)
            );
        if !is_known {
            let found = node.text("activation")?.unwrap_or("");
            return Err(OpError::value("activation", found, "Relu, Clip or HardSwish"));
        }
        Ok(Self {
            epsilon: node.float_or("epsilon", 1e-5)?,
            momentum: node.float_or("momentum", 0.9)?,
            is_training,
            is_channels_last,
            activation,
            reads: Reads::NOTHING,
            output_count: 1,
        })
    }

    fn channels(&self, shape: &[usize]) -> usize {
        let axis = if self.is_channels_last { shape.len().saturating_sub(1) } else { 1 };
        shape.get(axis).copied().unwrap_or(1)
    }

    /// Whether a tensor's rows of channels do not lie as they are read.
    fn is_moved(&self, shape: &[usize]) -> bool {
        !self.is_channels_last && shape.len() > 2 && shape[2..].iter().any(|&size| size != 1)
    }

    /// # Errors
    /// Parameters that are not one per channel.
    pub(super) fn forward(&self, run: &Run) -> Result<Normalized, OpError> {
        let pool = run.pool;
        let x = run.typed::<f32>(0)?;
        let channels = self.channels(x.shape());
        let parameter = |index: usize| -> Result<&[f32], OpError> {
            let tensor = run.typed::<f32>(index)?;
            if tensor.shape() != [channels] {
                return Err(OpError::shapes(x.shape(), tensor.shape()));
            }
            Ok(tensor.slice())
        };
        let (scale, bias) = (parameter(1)?, parameter(2)?);
        let given = [parameter(3)?, parameter(4)?];
        let is_moved = self.is_moved(x.shape());
        let x_last = if is_moved { to_channels_last(pool, x) } else { x.clone() };
        let values = x_last.slice::<f32>();
        let rows = values.len() / channels.max(1);
        let (mean, variance) = if self.is_training {
            statistics(values, channels, pool)
        } else {
            (given[0].to_vec(), given[1].to_vec())
        };
        let inverse = self.inverse(&variance);
        let (factor, shift) = coefficients(scale, bias, &mean, &inverse);
        let line = Line { factor: &factor, shift: &shift, activation: self.activation };
        let mut y = pool.tensor(DType::F32, x_last.shape());
        for_rows(y.slice_mut::<f32>(), channels, |first, y| {
            lines(y, &values[first * channels..][..y.len()], line);
        });
        pool.recycle(x_last);
        if is_moved {
            let first = to_channels_first(pool, &y);
            pool.recycle(std::mem::replace(&mut y, first));
        }
        Ok(Normalized { y, mean, variance, rows })
    }

    fn inverse(&self, variance: &[f32]) -> Vec<f32> {
        let inverse = |&v: &f32| (1.0 / (f64::from(v) + f64::from(self.epsilon)).sqrt()) as f32;
        variance.iter().map(inverse).collect()
    }

    /// before · momentum + found · (1 − momentum).
    fn mixed(&self, before: &[f32], found: impl Iterator<Item = f32>) -> Tensor {
        let mixed = before.iter().zip(found);
        let mixed = mixed.map(|(&b, f)| b * self.momentum + f * (1.0 - self.momentum));
        let mixed: Vec<f32> = mixed.collect();
        Tensor::new(&[mixed.len()], &mixed)
    }
}

/// z = x·factor + shift.
fn coefficients(
    scale: &[f32],
    bias: &[f32],
    mean: &[f32],
    inverse: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let factor: Vec<f32> =
        scale.iter().zip(inverse).map(|(scale, inverse)| scale * inverse).collect();
    let terms = bias.iter().zip(mean).zip(&factor);
    let shift = terms.map(|((bias, mean), factor)| bias - mean * factor).collect();
    (factor, shift)
}

/// Values that one part of a sum over rows covers: what stays in the cache for a second pass.
const PART: usize = 1 << 14;

fn part_rows(channels: usize) -> usize {
    (PART / channels.max(1)).max(16)
}

/// Mean and population variance of each channel: of parts that depend on the shape alone, then
/// joined in order (Chan et al., 1979).
fn statistics(x: &[f32], channels: usize, pool: &Pool) -> (Vec<f32>, Vec<f32>) {
    let rows = x.len() / channels.max(1);
    if x.is_empty() {
        return (vec![0.0; channels], vec![0.0; channels]);
    }
    let each = part_rows(channels);
    let mut parts = pool.tensor(DType::F32, &[rows.div_ceil(each), 2 * channels]);
    let values = parts.slice_mut::<f32>();
    values.fill(0.0);
    let work = |(part, x): (&mut [f32], &[f32])| {
        let (mean, squares) = part.split_at_mut(channels);
        add_rows(mean, x);
        let factor = 1.0 / (x.len() / channels) as f32;
        mean.iter_mut().for_each(|mean| *mean *= factor);
        add_squares(squares, x, mean);
    };
    values.par_chunks_exact_mut(2 * channels).zip(x.par_chunks(each * channels)).for_each(work);
    let counts = x.chunks(each * channels).map(|x| (x.len() / channels) as f64);
    let parts_of = || parts.slice::<f32>().chunks_exact(2 * channels).zip(counts.clone());
    let mut mean = vec![0.0_f64; channels];
    for (part, count) in parts_of() {
        mean.iter_mut().zip(part).for_each(|(sum, &part)| *sum += count * f64::from(part));
    }
    mean.iter_mut().for_each(|mean| *mean /= rows as f64);
    let mut variance = vec![0.0_f64; channels];
    for (part, count) in parts_of() {
        let (means, squares) = part.split_at(channels);
        for (c, sum) in variance.iter_mut().enumerate() {
            let apart = f64::from(means[c]) - mean[c];
            *sum += f64::from(squares[c]) + count * apart * apart;
        }
    }
    let narrow = |values: Vec<f64>, over: f64| values.iter().map(|v| (v / over) as f32).collect();
    pool.recycle(parts);
    (narrow(mean, 1.0), narrow(variance, rows as f64))
}

impl Gradient for Norm {
    fn reads(&self) -> Reads {
        self.reads
    }

    fn states(&self) -> &[usize] {
        if self.is_training { &[3, 4] } else { &[] }
    }

    fn forward(&self, forward: &mut Forward, _: &dyn Kernel) -> Result<Vec<Tensor>, OpError> {
        let run = &forward.run;
        let Normalized { y, mean, variance, rows } = Norm::forward(self, run)?;
        let mut outputs = vec![y];
        if self.is_training {
            let (means, variances) = (run.typed::<f32>(3)?.slice(), run.typed::<f32>(4)?.slice());
            let running = self.mixed(means, mean.iter().copied());
            if self.output_count > 1 {
                outputs.push(running.clone());
                outputs.push(self.mixed(variances, variance.iter().copied()));
            }
            // The running variance is of the whole population, as PyTorch estimates it.
            let unbiased = rows as f32 / (rows.max(2) - 1) as f32;
            let updated = self.mixed(variances, variance.iter().map(|v| v * unbiased));
            forward.updates.extend([(3, running), (4, updated)]);
        }
        let inverse = self.inverse(&variance);
        forward.saved =
            vec![Tensor::new(&[mean.len()], &mean), Tensor::new(&[mean.len()], &inverse)];
        Ok(outputs)
    }

    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let pool = run.pool;
        let is_moved = self.is_moved(run.shape(0));
        let dy = match run.gradients[0].take() {
            Some(dy) if is_moved => {
                let last = to_channels_last(pool, &dy);
                pool.recycle(dy);
                last
            }
            Some(dy) => dy,
            None => {
                let mut shape = run.shape(0).to_vec();
                if is_moved {
                    shape[1..].rotate_left(1);
                }
                run.zeros(&shape)
            }
        };
        let x = match run.inputs.first().and_then(Option::as_ref) {
            Some(x) if is_moved => Some(to_channels_last(pool, x)),
            Some(x) => Some(x.clone()),
            None => None,
        };
        let mut flows = self.flow_back(run, dy, x.as_ref())?;
        x.into_iter().for_each(|x| pool.recycle(x));
        if is_moved && let Some(dx) = flows[0].take() {
            flows[0] = Some(to_channels_first(pool, &dx));
            pool.recycle(dx);
        }
        Ok(flows.into_iter().map(|flow| flow.map(Flow::from)).collect())
    }
}

impl Norm {
    fn flow_back(
        &self,
        run: &Backward,
        mut dy: Tensor,
        x: Option<&Tensor>,
    ) -> Result<Vec<Option<Tensor>>, OpError> {
        let channels = self.channels(run.shape(0));
        let (mean, inverse) = (run.saved[0].slice::<f32>(), run.saved[1].slice::<f32>());
        let scale = run.input(1)?.slice::<f32>();
        let zeros = vec![0.0; channels];
        let bias = if self.reads.reads_input(2) { run.input(2)?.slice() } else { &zeros[..] };
        let (factor, shift) = coefficients(scale, bias, mean, inverse);
        let line = Line { factor: &factor, shift: &shift, activation: self.activation };
        // Where x is not read, the flow of a plain line does not depend on it.
        let x = x.unwrap_or(&dy).clone();
        let rows = x.element_count() / channels.max(1);
        let (sums, products) = if self.is_training {
            flow_sums(&dy, &x, mean, line, run.pool)
        } else {
            (zeros.clone(), zeros.clone())
        };
        let vector = |values: Vec<f32>| Tensor::new(&[channels], &values);
        let dscale: Vec<f32> =
            products.iter().zip(inverse).map(|(p, inverse)| p * inverse).collect();
        let mut flows = vec![None, None, None, None, None];
        if run.wants(0) {
            let (mut b, mut c) = (vec![0.0; channels], vec![0.0; channels]);
            let over = 1.0 / rows.max(1) as f32;
            for i in 0..channels {
                b[i] = -factor[i] * inverse[i] * dscale[i] * over;
                c[i] = -factor[i] * sums[i] * over;
            }
            self.add_running(run, &mut b, &mut c, over);
            // A single row is its own mean: what is made of it does not depend on it.
            let is_single = self.is_training && rows == 1;
            let a = if is_single { &zeros } else { &factor };
            if is_single {
                c.fill(0.0);
            }
            let mix = Mix { a, b: &b, c: &c, mean };
            flows[0] = Some(mixed_flow(&mut dy, &x, line, mix, run.pool));
        }
        run.pool.recycle(dy);
        flows[1] = run.wants(1).then(|| vector(dscale));
        flows[2] = run.wants(2).then(|| vector(sums));
        for (flow, output) in [(3, 1), (4, 2)] {
            let Some(running) = run.gradient(output).filter(|_| run.wants(flow)) else { continue };
            let before = running.slice::<f32>().iter().map(|dy| dy * self.momentum);
            flows[flow] = Some(vector(before.collect()));
        }
        Ok(flows)
    }

    /// What flows through running statistics that the node gives.
    fn add_running(&self, run: &Backward, b: &mut [f32], c: &mut [f32], over: f32) {
        let part = (1.0 - self.momentum) * over;
        if let Some(flow) = run.gradient(1) {
            c.iter_mut().zip(flow.slice::<f32>()).for_each(|(c, dy)| *c += part * dy);
        }
        if let Some(flow) = run.gradient(2) {
            b.iter_mut().zip(flow.slice::<f32>()).for_each(|(b, dy)| *b += 2.0 * part * dy);
        }
    }
}

/// dx, in the place of dy where nothing else holds that.
fn mixed_flow(dy: &mut Tensor, x: &Tensor, line: Line, mix: Mix, pool: &Pool) -> Tensor {
    let channels = mix.mean.len();
    let values = x.slice::<f32>();
    let part = |first: usize, size: usize| first * channels..first * channels + size;
    if dy.is_unique() {
        for_rows(dy.slice_mut::<f32>(), channels, |first, dx| {
            let range = part(first, dx.len());
            flow_back(dx, None, &values[range], line, mix);
        });
        let empty = Tensor::zeros(DType::F32, &[0]);
        return std::mem::replace(dy, empty);
    }
    let mut dx = pool.tensor(DType::F32, dy.shape());
    let flow = dy.slice::<f32>();
    for_rows(dx.slice_mut::<f32>(), channels, |first, dx| {
        let range = part(first, dx.len());
        flow_back(dx, Some(&flow[range.clone()]), &values[range], line, mix);
    });
    dx
}

/// Σ g and Σ g·(x − mean) of each channel.
fn flow_sums(
    dy: &Tensor,
    x: &Tensor,
    mean: &[f32],
    line: Line,
    pool: &Pool,
) -> (Vec<f32>, Vec<f32>) {
    let channels = mean.len();
    let mut sums = vec![0.0; 2 * channels];
    let (dy, x) = (dy.slice::<f32>(), x.slice::<f32>());
    if !x.is_empty() {
        let size = part_rows(channels) * channels;
        let mut parts = pool.tensor(DType::F32, &[x.len().div_ceil(size), 2 * channels]);
        let values = parts.slice_mut::<f32>();
        values.fill(0.0);
        let work = |((part, dy), x): ((&mut [f32], &[f32]), &[f32])| {
            add_flows(part.split_at_mut(channels).into(), dy, x, mean, line);
        };
        let parts_of = values.par_chunks_exact_mut(2 * channels);
        parts_of.zip(dy.par_chunks(size)).zip(x.par_chunks(size)).for_each(work);
        add_rows(&mut sums, parts.slice());
        pool.recycle(parts);
    }
    let products = sums.split_off(channels);
    (sums, products)
}
