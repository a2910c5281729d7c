//! Weights to symmetric 8-bit integers, one scale per output channel.

use attar_tensor::Tensor;

use crate::PassError;

/// A weight in integers: real = q · scale of its channel.
#[derive(Clone)]
pub struct WeightRounding {
    /// i8, the shape of the weight.
    pub values: Tensor,
    /// f32, one per channel.
    pub scales: Tensor,
}

/// Rounds an f32 weight to ±`level_max`, the scale of each index of `axis` being its largest
/// magnitude over `level_max`.
///
/// # Errors
/// [`PassError::WeightNotFinite`] with the given name.
pub fn quantize_channels(
    name: &str,
    weight: &Tensor,
    axis: usize,
    level_max: i8,
) -> Result<WeightRounding, PassError> {
    quantize_on(name, weight, axis, level_max.into(), |scale| scale)
}

/// As [`quantize_channels`], each scale being `scales` of its channel, in i16 where `level_max` passes
/// i8.
///
/// # Errors
/// [`PassError::WeightNotFinite`] with the given name.
pub(crate) fn quantize_on(
    name: &str,
    weight: &Tensor,
    axis: usize,
    level_max: i16,
    fit: impl Fn(f32) -> f32,
) -> Result<WeightRounding, PassError> {
    let channels = weight.shape()[axis];
    let inner = weight.shape()[axis + 1..].iter().product::<usize>().max(1);
    let values = weight.values::<f32>();
    if values.iter().any(|w| !w.is_finite()) {
        return Err(PassError::WeightNotFinite { tensor: name.into() });
    }
    // A run of `inner` values belongs to one channel, the next run to the next.
    let runs = || values.chunks_exact(inner).zip((0..channels).cycle());
    let mut largest = vec![0.0_f32; channels];
    for (run, channel) in runs() {
        largest[channel] = run.iter().fold(largest[channel], |most, w| most.max(w.abs()));
    }
    let top = f32::from(level_max);
    let step = |&largest: &f32| if largest / top < f32::MIN_POSITIVE { 1.0 } else { largest / top };
    let scales: Vec<f32> = largest.iter().map(step).map(fit).collect();
    let levels = if level_max > i16::from(i8::MAX) {
        let mut levels = Vec::with_capacity(values.len());
        for (run, channel) in runs() {
            levels.extend(run.iter().map(|w| nearest_level(w / scales[channel], top) as i16));
        }
        Tensor::new(weight.shape(), &levels)
    } else {
        let mut levels = Vec::with_capacity(values.len());
        for (run, channel) in runs() {
            levels.extend(run.iter().map(|w| nearest_level(w / scales[channel], top) as i8));
        }
        Tensor::new(weight.shape(), &levels)
    };
    Ok(WeightRounding { values: levels, scales: Tensor::new(&[channels], &scales) })
}

/// The integer nearest to `x` within ±`level_max`, half to even: `round_ties_even` is a call where the
/// compiler may not assume SSE4.1, and most of the time of rounding a model.
#[inline]
pub(crate) fn nearest_level(x: f32, level_max: f32) -> f32 {
    nearest_within(x, [-level_max, level_max])
}

/// As [`nearest_level`], from the first of `ends` to the last.
#[inline]
pub(crate) fn nearest_within(x: f32, ends: [f32; 2]) -> f32 {
    /// 1.5·2²³: added to |x| < 2²², it leaves no bits behind the point.
    const ROUND: f32 = 12_582_912.0;
    (x.clamp(ends[0], ends[1]) + ROUND) - ROUND
}

/// A scale that is never 0 nor denormal: a channel of zeros still divides.
pub(super) fn scale(largest: f32, level_max: i8) -> f32 {
    let scale = largest / f32::from(level_max);
    if scale < f32::MIN_POSITIVE { 1.0 } else { scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_level_is_that_of_round_ties_even() {
        for i in -2100..=2100_i16 {
            let x = f32::from(i) / 16.0;
            assert!(nearest_level(x, 127.0) == x.round_ties_even().clamp(-127.0, 127.0), "{x}");
        }
        assert!(nearest_level(f32::INFINITY, 7.0) == 7.0 && nearest_level(f32::NAN, 7.0).is_nan());
    }

    #[test]
    fn each_channel_uses_the_whole_range_and_zeros_stay_zero() {
        let weight = Tensor::new(&[2, 3], &[1.0_f32, 0.0, -4.0, 0.5, 0.0, 2.0]);
        let rounded = quantize_channels("w", &weight, 1, 127).unwrap();
        assert_eq!(rounded.values.slice::<i8>(), [127, 0, -127, 64, 0, 64]);
        assert_eq!(rounded.scales.slice::<f32>(), [1.0 / 127.0, 1.0, 4.0 / 127.0]);
    }

    #[test]
    fn a_nan_is_named() {
        let weight = Tensor::new(&[1, 1], &[f32::NAN]);
        let error = quantize_channels("w", &weight, 0, 127).err().unwrap();
        assert_eq!(error.to_string(), "weight `w` holds NaN or infinity");
    }
}
