//! The weights of one product in 8 bits: scaled, rounded, and what rounding does to its output.

use attar_graph::{Links, Node};
use attar_ops::logits::weighted_rows;
use attar_tensor::Tensor;
use serde::Deserialize;

use super::nodes::weight_of;
use super::safe_weight::{Bounding, Channels, bound, quantize_safely};
use super::sites::Site;
use super::weight::{WeightRounding, nearest_level, quantize_channels, quantize_on, scale};
use super::weights::Grid;
use super::{descent, gptq};
use crate::PassError;

/// How weights are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rounding {
    /// To the nearest level.
    Nearest,
    /// By second moments of the input, see [`gptq`].
    #[default]
    Gptq,
    /// By descent from there, level by level, see [`descent`].
    Descent,
}

impl Rounding {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Gptq => "gptq",
            Self::Descent => "descent",
        }
    }
}

/// How the scale of an output channel's weights is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WeightScale {
    /// The largest weight is the last level.
    #[default]
    Max,
    /// The scale of least squared error, down to half of that.
    Mse,
}

/// What is done about CPUs that sum two products in 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Saturation {
    /// Weights are bounded where a pair of them could get there.
    #[default]
    Safe,
    Ignore,
}

/// The settings of rounding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Method {
    pub(crate) rounding: Rounding,
    pub(crate) weight_scale: WeightScale,
    pub(crate) saturation: Saturation,
    pub(crate) level_max: i8,
    /// Weights of 16 bits, each rounded to the nearest.
    pub(crate) is_wide: bool,
    pub(crate) grid: ScaleGrid,
}

/// The scales that there may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ScaleGrid {
    #[default]
    Any,
    /// Integer powers of two: hardware shifts instead of multiplying.
    PowerOfTwo,
}

impl ScaleGrid {
    /// The least scale of the grid that is not below `scale`.
    pub(crate) fn fit(self, scale: f32) -> f32 {
        match self {
            Self::Any => scale,
            Self::PowerOfTwo => {
                let power = scale.log2().ceil();
                // The logarithm of a power of two may be off by an ulp.
                let below = (power - 1.0).exp2();
                if below >= scale { below } else { power.exp2() }
            }
        }
    }
}

/// Weights in integers, and what they cost.
#[derive(Clone)]
pub(crate) struct Rounded {
    pub(crate) weight: WeightRounding,
    pub(crate) bounding: Bounding,
    pub(crate) rounding: Rounding,
    /// ‖X·(W − Ŵ)‖ / ‖X·W‖ on the calibration data.
    pub(crate) error: f64,
    /// Mean of X·(W − Ŵ), per output.
    pub(crate) shift: Vec<f32>,
}

/// The weights of a `MatMul`, Gemm or 1×1 convolution as [inputs, outputs].
pub(crate) fn matrix_of(links: &Links, node: &Node) -> Option<([usize; 2], Vec<f32>)> {
    let weight = weight_of(links, node)?;
    let shape = weight.tensor.shape();
    let values = weight.tensor.values::<f32>();
    if weight.axis == 1 {
        return Some(([shape[0], shape[1]], values.into_owned()));
    }
    let is_matrix = shape[2..].iter().all(|&size| size == 1) && node.int_or("group", 1) == Ok(1);
    is_matrix.then(|| ([shape[1], shape[0]], transposed(&values, shape[0])))
}

/// Rows become columns.
pub(crate) fn transposed<T: Copy>(values: &[T], rows: usize) -> Vec<T> {
    let columns = values.len() / rows.max(1);
    (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
}

/// Rounds the weights of `node`, whose input is `site`.
///
/// # Errors
/// Weights that are not finite.
pub(crate) fn round(
    links: &Links,
    node: &Node,
    site: &Site,
    method: Method,
) -> Result<Option<Rounded>, PassError> {
    let Method { rounding, level_max, .. } = method;
    let Some(weight) = weight_of(links, node) else { return Ok(None) };
    let is_shared = links.uses(weight.name).len() != 1;
    let is_plain = is_shared || method.is_wide;
    let Some(([inputs, outputs], w)) = matrix_of(links, node).filter(|_| !is_plain) else {
        return nearest(&weight, node, site, method).map(Some);
    };
    if w.iter().any(|w| !w.is_finite()) {
        return Err(PassError::WeightNotFinite { tensor: weight.name.into() });
    }
    let mut w = w;
    if let Some(divisors) = &site.divisors {
        for (row, s) in w.chunks_exact_mut(outputs).zip(divisors) {
            row.iter_mut().for_each(|w| *w *= s);
        }
    }
    let mut scales = scales(&w, outputs, level_max, method.weight_scale);
    let columns =
        (method.saturation == Saturation::Safe).then(|| Channels::of_columns(inputs, outputs));
    let at_risk = columns.as_ref().map(|columns| columns.coarsen(&w, &mut scales, level_max));
    scales.iter_mut().for_each(|scale| *scale = method.grid.fit(*scale));
    let moments = site.gram.as_ref().filter(|gram| gram.len() == inputs * inputs);
    let moments = moments.map(|gram| divided_moments(gram, inputs, site));
    let second_order = match (&moments, rounding) {
        (Some(h), Rounding::Gptq | Rounding::Descent) => {
            let level_max = f32::from(level_max);
            let ridge = ridge(h, inputs, site);
            let grid = Grid::of_outputs(&scales, level_max);
            let levels = gptq::round(&w, &grid, h.clone(), &ridge);
            match (levels, rounding) {
                (Some(levels), Rounding::Descent) => Some(descent::refine(&w, &grid, h, levels)),
                (levels, _) => levels,
            }
        }
        _ => None,
    };
    let rounding = if second_order.is_some() { rounding } else { Rounding::Nearest };
    let mut levels = second_order.unwrap_or_else(|| nearest_levels(&w, &scales, level_max));
    let bounding = columns.zip(at_risk).map_or_else(Bounding::default, |(columns, at_risk)| {
        columns.move_pairs(&mut levels, at_risk)
    });
    let e: Vec<f32> =
        (0..w.len()).map(|i| w[i] - f32::from(levels[i]) * scales[i % outputs]).collect();
    let error = match &moments {
        Some(h) => relative_error(h, &e, &w, outputs),
        None => diagonal_error(site, &e, &w, outputs),
    };
    let shift = mean_shift(site, &e, outputs);
    let levels = if weight.axis == 1 { levels } else { transposed(&levels, inputs) };
    let weight = WeightRounding {
        values: Tensor::new(weight.tensor.shape(), &levels),
        scales: Tensor::new(&[outputs], &scales),
    };
    Ok(Some(Rounded { weight, bounding, rounding, error, shift }))
}

fn nearest_levels(w: &[f32], scales: &[f32], level_max: i8) -> Vec<i8> {
    let level = |(index, w): (usize, &f32)| {
        nearest_level(w / scales[index % scales.len()], f32::from(level_max)) as i8
    };
    w.iter().enumerate().map(level).collect()
}

/// Weights to the nearest levels, by the settings of `method`.
///
/// # Errors
/// Weights that are not finite.
pub(super) fn nearest_weights(
    name: &str,
    tensor: &Tensor,
    axis: usize,
    method: Method,
) -> Result<(WeightRounding, Bounding), PassError> {
    let is_safe = method.saturation == Saturation::Safe;
    if method.is_wide || method.grid != ScaleGrid::Any {
        let level_max = if method.is_wide { i16::MAX } else { method.level_max.into() };
        let fit = |scale| method.grid.fit(scale);
        let mut rounding = quantize_on(name, tensor, axis, level_max, fit)?;
        let is_bounded = is_safe && !method.is_wide;
        let bounding = if is_bounded { bound(&mut rounding, axis) } else { Bounding::default() };
        return Ok((rounding, bounding));
    }
    if is_safe {
        return quantize_safely(name, tensor, axis, method.level_max);
    }
    Ok((quantize_channels(name, tensor, axis, method.level_max)?, Bounding::default()))
}

/// Kernels of more than one place, and weights that several products read.
fn nearest(
    weight: &super::nodes::Weight,
    node: &Node,
    site: &Site,
    method: Method,
) -> Result<Rounded, PassError> {
    let axis = weight.axis;
    let tensor = &multiplied(weight, site);
    let (rounded, bounding) = nearest_weights(weight.name, tensor, axis, method)?;
    let shape = weight.tensor.shape();
    let w = tensor.values::<f32>();
    let divisor = |input: usize| site.divisors.as_ref().map_or(1.0, |s| f64::from(s[input]));
    let levels = rounded.values.to_f32().unwrap_or_default();
    let scales = rounded.scales.slice::<f32>();
    let inner: usize = shape[weight.axis + 1..].iter().product();
    let groups = node.int_or("group", 1).unwrap_or(1).max(1) as usize;
    let outputs_each = (shape[0] / groups).max(1);
    let statistics = &site.statistics;
    let count = statistics.count.max(1) as f64;
    let (mut lost, mut power) = (0.0, 0.0);
    let mut shift = vec![0.0; scales.len()];
    for (index, &w) in w.iter().enumerate() {
        let output = index / inner % scales.len();
        let input = if weight.axis == 1 {
            index / shape[1]
        } else {
            let kernel: usize = shape[2..].iter().product();
            output / outputs_each * shape[1] + index / kernel % shape[1]
        };
        let e = w - levels[index] * scales[output];
        let square = statistics.square_sum.get(input).copied().unwrap_or(1.0);
        let square = square / divisor(input).powi(2);
        lost += square * f64::from(e) * f64::from(e);
        power += square * f64::from(w) * f64::from(w);
        let mean = statistics.sum.get(input).map_or(0.0, |sum| sum / count / divisor(input));
        shift[output] += mean as f32 * e;
    }
    let error = relative(lost, power);
    Ok(Rounded { weight: rounded, bounding, rounding: Rounding::Nearest, error, shift })
}

/// The weights, those of each input channel times what it is divided by.
fn multiplied(weight: &super::nodes::Weight, site: &Site) -> Tensor {
    let tensor = weight.tensor;
    let Some(divisors) = site.divisors.as_ref().filter(|_| weight.axis == 0) else {
        return tensor.clone();
    };
    let window: usize = tensor.shape()[2..].iter().product();
    let mut w = tensor.values::<f32>().into_owned();
    for (kernel, s) in w.chunks_exact_mut(window.max(1)).zip(divisors.iter().cycle()) {
        kernel.iter_mut().for_each(|w| *w *= s);
    }
    Tensor::new(tensor.shape(), &w)
}

/// XᵀX of the divided channels.
fn divided_moments(gram: &[f32], inputs: usize, site: &Site) -> Vec<f32> {
    let Some(divisors) = &site.divisors else { return gram.to_vec() };
    let divided =
        |(index, x): (usize, &f32)| x / divisors[index / inputs] / divisors[index % inputs];
    gram.iter().enumerate().map(divided).collect()
}

/// What rounding the input itself adds to the moments of each channel, Δ²/12 a row, and a
/// hundredth of a mean channel against what a sample did not show.
fn ridge(h: &[f32], inputs: usize, site: &Site) -> Vec<f32> {
    let mean = (0..inputs).map(|k| f64::from(h[k * inputs + k])).sum::<f64>() / inputs as f64;
    let step = f64::from(site.chosen.range.scale);
    let own = step * step / 12.0 * site.gram_rows as f64;
    let ridge = own + 0.01 * mean;
    vec![if ridge > 0.0 { ridge as f32 } else { 1.0 }; inputs]
}

fn scales(w: &[f32], outputs: usize, level_max: i8, by: WeightScale) -> Vec<f32> {
    let mut largest = vec![0.0_f32; outputs];
    for row in w.chunks_exact(outputs) {
        largest.iter_mut().zip(row).for_each(|(largest, w)| *largest = largest.max(w.abs()));
    }
    if by == WeightScale::Max {
        return largest.iter().map(|&largest| scale(largest, level_max)).collect();
    }
    // All channels at once, one part of the largest after the other: rows stay in order.
    let top = f32::from(level_max);
    let mut best: Vec<(f64, f32)> = largest.iter().map(|_| (f64::INFINITY, 1.0)).collect();
    for part in (10..=20).rev().map(|part| part as f32 / 20.0) {
        let tried: Vec<f32> =
            largest.iter().map(|&largest| scale(largest * part, level_max)).collect();
        let mut lost = vec![0.0_f64; outputs];
        for row in w.chunks_exact(outputs) {
            for ((lost, w), scale) in lost.iter_mut().zip(row).zip(&tried) {
                let level = nearest_level(w / scale, top);
                *lost += f64::from(w - level * scale).powi(2);
            }
        }
        for ((best, lost), scale) in best.iter_mut().zip(lost).zip(tried) {
            if lost < best.0 {
                *best = (lost, scale);
            }
        }
    }
    best.into_iter().map(|(_, scale)| scale).collect()
}

/// √(lost / power); 0 where nothing is lost, or the squares are beyond what a float holds.
fn relative(lost: f64, power: f64) -> f64 {
    let ratio = (lost / power).sqrt();
    if ratio.is_finite() { ratio } else { 0.0 }
}

/// Outputs looked at for the error; more change its digits, not its size.
const OUTPUTS_MAX: usize = 64;

/// √(Σ eᵀ·H·e / Σ wᵀ·H·w) over a part of the outputs.
fn relative_error(h: &[f32], e: &[f32], w: &[f32], outputs: usize) -> f64 {
    let [lost, power] = powers(h, e, w, outputs);
    relative(lost, power)
}

/// As [`relative_error`], of groups of outputs that have second moments, errors and weights of their own.
pub(crate) fn relative_error_of_groups<'a>(
    groups: impl Iterator<Item = (&'a [f32], Vec<f32>, Vec<f32>)>,
    outputs: usize,
) -> f64 {
    let add = |sum: [f64; 2], (h, e, w): (&[f32], Vec<f32>, Vec<f32>)| {
        let [lost, power] = powers(h, &e, &w, outputs);
        [sum[0] + lost, sum[1] + power]
    };
    let [lost, power] = groups.fold([0.0; 2], add);
    relative(lost, power)
}

/// Σ eᵀ·H·e and Σ wᵀ·H·w.
fn powers(h: &[f32], e: &[f32], w: &[f32], outputs: usize) -> [f64; 2] {
    let inputs = e.len() / outputs.max(1);
    let step = outputs.div_ceil(OUTPUTS_MAX).max(1);
    [e, w].map(|values| {
        let rows = values.chunks_exact(outputs);
        let part: Vec<f32> = rows.flat_map(|row| row.iter().step_by(step).copied()).collect();
        let mut product = vec![0.0; part.len()];
        weighted_rows(&mut product, h, &part, [inputs, inputs], false);
        part.iter().zip(&product).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    })
}

/// As [`relative_error`], of channels that do not move together.
fn diagonal_error(site: &Site, e: &[f32], w: &[f32], outputs: usize) -> f64 {
    let form = |values: &[f32]| -> f64 {
        let rows = values.chunks_exact(outputs).enumerate();
        rows.map(|(channel, row)| {
            let square = site.statistics.square_sum.get(channel).copied().unwrap_or(1.0);
            let divisor = site.divisors.as_ref().map_or(1.0, |s| f64::from(s[channel]));
            row.iter().map(|x| f64::from(x * x)).sum::<f64>() * square / (divisor * divisor)
        })
        .sum()
    };
    relative(form(e), form(w))
}

fn mean_shift(site: &Site, e: &[f32], outputs: usize) -> Vec<f32> {
    let count = site.statistics.count.max(1) as f64;
    let mut shift = vec![0.0_f64; outputs];
    for (channel, row) in e.chunks_exact(outputs).enumerate() {
        let divisor = site.divisors.as_ref().map_or(1.0, |s| f64::from(s[channel]));
        let mean = site.statistics.sum.get(channel).map_or(0.0, |sum| sum / count / divisor);
        shift.iter_mut().zip(row).for_each(|(shift, e)| *shift += mean * f64::from(*e));
    }
    shift.into_iter().map(|shift| shift as f32).collect()
}
