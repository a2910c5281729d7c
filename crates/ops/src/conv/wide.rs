//! Convolution of f64, one output after the other.

use attar_graph::Node;
use attar_tensor::Tensor;

use super::output_shape;
use super::settings::Settings;
use crate::geometry::Axis;
use crate::{OpError, Run};

pub(super) fn run(
    node: &Node,
    run: &mut Run,
    is_channels_last: bool,
) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (run.typed::<f64>(0)?, run.typed::<f64>(1)?);
    let (shape, weight) = (x.shape(), w.shape());
    if shape.len() != weight.len() || shape.len() < 3 || is_channels_last {
        return Err(OpError::shapes(shape, weight));
    }
    let settings = Settings::new(node, &weight[2..])?;
    let group = settings.group;
    if weight[1].checked_mul(group) != Some(shape[1]) || !weight[0].is_multiple_of(group) {
        return Err(OpError::shapes(shape, weight));
    }
    let axes = settings.geometry.axes(&shape[2..])?;
    let output = output_shape(shape[0], weight[0], axes.iter().map(|axis| axis.output), false)?;
    let addend = match run.optional(3) {
        Some(addend) if addend.shape() != output => {
            return Err(OpError::shapes(&output, addend.shape()));
        }
        Some(_) => Some(run.typed::<f64>(3)?.values::<f64>()),
        None => None,
    };
    let bias = match run.optional(2) {
        Some(bias) if bias.shape() != [weight[0]] => {
            return Err(OpError::shapes(weight, bias.shape()));
        }
        Some(_) => Some(run.typed::<f64>(2)?.values::<f64>()),
        None => None,
    };
    let (x, w) = (x.values::<f64>(), w.values::<f64>());
    let plane_in: usize = shape[2..].iter().product();
    let plane_out: usize = axes.iter().map(|axis| axis.output).product();
    let taps: usize = weight[2..].iter().product();
    let per_group = weight[0] / group;
    let mut y = vec![0.0_f64; output.iter().product()];
    for (index, y) in y.chunks_exact_mut(plane_out.max(1)).enumerate() {
        let (n, o) = (index / weight[0], index % weight[0]);
        y.fill(bias.as_ref().map_or(0.0, |bias| bias[o]));
        for c in 0..weight[1] {
            let channel = o / per_group * weight[1] + c;
            let x = &x[(n * shape[1] + channel) * plane_in..][..plane_in];
            let w = &w[(o * weight[1] + c) * taps..][..taps];
            for (place, y) in y.iter_mut().enumerate() {
                for (tap, &w) in w.iter().enumerate() {
                    if let Some(at) = source(&axes, place, tap) {
                        *y += x[at] * w;
                    }
                }
            }
        }
    }
    if let Some(addend) = addend {
        y.iter_mut().zip(addend.iter()).for_each(|(y, addend)| *y += addend);
    }
    let name = node.text("activation")?.unwrap_or("");
    y.iter_mut().for_each(|y| *y = settings.activation.apply_wide(name, *y));
    Ok(vec![Tensor::new(&output, &y)])
}

/// The input element under a tap of an output, both counted in row-major order.
pub(crate) fn source(axes: &[Axis], mut output: usize, mut tap: usize) -> Option<usize> {
    let (mut at, mut pitch) = (0, 1);
    for axis in axes.iter().rev() {
        at += axis.source(output % axis.output, tap % axis.kernel)? * pitch;
        output /= axis.output;
        tap /= axis.kernel;
        pitch *= axis.input;
    }
    Some(at)
}
