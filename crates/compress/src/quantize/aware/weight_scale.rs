//! The scale that a channel of weights begins with.

use crate::PassError;
use crate::quantize::nodes::Weight;
use crate::quantize::weight::scale;

/// Parts of the largest magnitude that are tried, each of the one before.
const SHRINK: f32 = 0.95;
const TRIED: i32 = 64;
/// From so many levels on, the largest weight is the last one, as in `quantize.static`.
const FINE: i64 = 63;

/// The weights of each output channel.
///
/// # Errors
/// Weights that are not finite.
pub(super) fn finite_channels(weight: &Weight) -> Result<Vec<Vec<f32>>, PassError> {
    let (shape, axis) = (weight.tensor.shape(), weight.axis);
    let inner: usize = shape[axis + 1..].iter().product();
    let mut channels = vec![Vec::new(); shape[axis]];
    let values = weight.tensor.values::<f32>();
    for (run, part) in values.chunks_exact(inner.max(1)).enumerate() {
        channels[run % shape[axis]].extend_from_slice(part);
    }
    if channels.iter().flatten().any(|w| !w.is_finite()) {
        return Err(PassError::WeightNotFinite { tensor: weight.name.into() });
    }
    Ok(channels)
}

/// The scale for levels from `low` to `high`: on coarse grids that of least squared error.
pub(super) fn first_scale(channel: &[f32], low: i64, high: i64) -> f32 {
    let largest = channel.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
    let whole = scale(largest, high as i8);
    if high >= FINE || largest == 0.0 {
        return whole;
    }
    let ends = [low as f32, high as f32];
    let tried = (0..TRIED).map(|power| whole * SHRINK.powi(power));
    let errors = tried.map(|scale| (squared_error(channel, scale, ends), scale));
    errors.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(whole, |(_, scale)| scale)
}

fn squared_error(channel: &[f32], scale: f32, [low, high]: [f32; 2]) -> f64 {
    let error = |w: &f32| w - (w / scale).round_ties_even().clamp(low, high) * scale;
    channel.iter().map(|w| f64::from(error(w)).powi(2)).sum()
}
