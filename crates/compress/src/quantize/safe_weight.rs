//! Weights whose products with u8 give the same integers on CPUs that sum in 16 bits.

use attar_tensor::Tensor;

use super::weight::{WeightRounding, round_channels};
use crate::PassError;
use crate::saturation::{LevelRange, move_pairs, pairs_of, safe_levels};

/// Channels of rounded weights, and how many of them were at risk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounding {
    pub(crate) channels: usize,
    pub(crate) at_risk: usize,
    /// Pairs of weights that were moved, since a coarser grid would have cost more.
    pub(crate) moved: usize,
}

/// As [`quantize_channels`](super::quantize_channels), with channels at risk bounded: on a grid as
/// coarse as pays, and the pairs moved that are still at risk there.
///
/// # Errors
/// A weight that is not finite.
pub(crate) fn quantize_safely(
    name: &str,
    weight: &Tensor,
    axis: usize,
    level_max: i8,
    range: LevelRange,
) -> Result<(WeightRounding, Bounding), PassError> {
    let channels = Channels::new(weight, axis);
    let pairs = pairs_of(&channels.shape);
    let values = weight.values::<f32>();
    if values.iter().any(|w| !w.is_finite()) {
        return Err(PassError::WeightNotFinite { tensor: name.into() });
    }
    let mut bounding = Bounding { channels: channels.count, ..Bounding::default() };
    let mut level_maxes = vec![level_max; channels.count];
    let mut at_risk = Vec::new();
    for (index, level) in level_maxes.iter_mut().enumerate() {
        let bounded = safe_levels(&channels.gather(&values, index), &pairs, range, level_max);
        *level = bounded.level_max;
        if bounded.was_at_risk {
            at_risk.push(index);
        }
    }
    bounding.at_risk = at_risk.len();
    let mut rounding = round_channels(name, weight, axis, &|index| level_maxes[index])?;
    let mut levels = rounding.values.slice::<i8>().to_vec();
    for index in at_risk {
        let mut channel = channels.gather(&levels, index);
        bounding.moved += move_pairs(&mut channel, &pairs, range);
        channels.scatter(&channel, index, &mut levels);
    }
    rounding.values = Tensor::new(weight.shape(), &levels);
    Ok((rounding, bounding))
}

/// Where the weights of each output channel stand.
struct Channels {
    count: usize,
    /// Inputs, and the window of a convolution.
    shape: Vec<usize>,
    /// Between the first weights of two channels, and between two weights of one.
    strides: (usize, usize),
}

impl Channels {
    /// The outputs stand on the first axis, or on the second of a matrix.
    fn new(weight: &Tensor, axis: usize) -> Self {
        let shape = weight.shape();
        if axis == 0 {
            let size = shape[1..].iter().product();
            return Self { count: shape[0], shape: shape[1..].to_vec(), strides: (size, 1) };
        }
        Self { count: shape[1], shape: vec![shape[0]], strides: (1, shape[1]) }
    }

    fn places(&self, index: usize) -> impl Iterator<Item = usize> + use<> {
        let size: usize = self.shape.iter().product();
        let (first, step) = (index * self.strides.0, self.strides.1);
        (0..size).map(move |k| first + k * step)
    }

    fn gather<T: Copy>(&self, values: &[T], index: usize) -> Vec<T> {
        self.places(index).map(|place| values[place]).collect()
    }

    fn scatter(&self, channel: &[i8], index: usize, values: &mut [i8]) {
        self.places(index).zip(channel).for_each(|(place, &level)| values[place] = level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_are_bounded_alike_and_stay_near_the_weight() {
        // Two channels of four inputs: the first at risk, the second not.
        let rows = [1.0_f32, 0.8, 0.1, -0.2, 0.5, -0.5, 0.25, -0.5];
        let columns: Vec<f32> = (0..8).map(|i| rows[i % 2 * 4 + i / 2]).collect();
        let safe = |shape: &[usize], w: &[f32], axis| {
            let weight = Tensor::new(shape, w);
            quantize_safely("w", &weight, axis, 127, LevelRange::ALL).unwrap()
        };
        let (first, bounding) = safe(&[2, 4], &rows, 0);
        let (second, same) = safe(&[4, 2], &columns, 1);
        assert_eq!((bounding.channels, bounding.at_risk), (2, 1));
        assert_eq!(bounding, same);
        let q = first.values.slice::<i8>();
        let turned: Vec<i8> = (0..8).map(|i| q[i % 2 * 4 + i / 2]).collect();
        assert_eq!(second.values.slice::<i8>(), turned);
        assert_eq!(first.scales.slice::<f32>(), second.scales.slice::<f32>());
        assert!(i32::from(q[0]) + i32::from(q[1]) <= 128 && q[4] == 127, "{q:?}");
        for (index, w) in rows.iter().enumerate() {
            let scale = first.scales.slice::<f32>()[index / 4];
            assert!((f32::from(q[index]) * scale - w).abs() <= 0.6 * scale, "{q:?}");
        }
    }
}
