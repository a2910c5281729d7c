//! Weights whose products with u8 give the same integers on CPUs that sum in 16 bits.

use attar_tensor::Tensor;

use super::weight::{WeightRounding, nearest_level, quantize_channels};
use crate::PassError;
use crate::saturation::{LevelRange, move_pairs, pairs_of, safe_scale};

/// Channels of rounded weights, and how many of them were at risk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounding {
    pub(crate) channels: usize,
    pub(crate) at_risk: usize,
    /// Pairs of weights that were moved, since a coarser grid would have cost more.
    pub(crate) moved: usize,
}

impl Bounding {
    pub(crate) fn add(&mut self, other: Self) {
        self.channels += other.channels;
        self.at_risk += other.at_risk;
        self.moved += other.moved;
    }

    /// What the report says, where a channel was at risk.
    pub(crate) fn remark(self) -> Option<String> {
        (self.at_risk > 0).then(|| {
            format!(
                "{} of {} channels could saturate 16-bit sums and were bounded, {} pairs of weights \
                 moved: every CPU gives the same integers",
                self.at_risk, self.channels, self.moved
            )
        })
    }
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
) -> Result<(WeightRounding, Bounding), PassError> {
    let mut rounding = quantize_channels(name, weight, axis, level_max)?;
    let channels = Channels::new(weight.shape(), axis);
    let values = weight.values::<f32>();
    let mut scales = rounding.scales.slice::<f32>().to_vec();
    let at_risk = channels.coarsen(&values, &mut scales, level_max);
    let mut levels = rounding.values.slice::<i8>().to_vec();
    for &index in &at_risk {
        for place in channels.places(index) {
            levels[place] = nearest_level(values[place] / scales[index], 127.0) as i8;
        }
    }
    let bounding = channels.move_pairs(&mut levels, at_risk);
    rounding.values = Tensor::new(weight.shape(), &levels);
    rounding.scales = Tensor::new(&[scales.len()], &scales);
    Ok((rounding, bounding))
}

/// Moves the pairs of rounded weights that are at risk.
pub(crate) fn bound(rounding: &mut WeightRounding, axis: usize) -> Bounding {
    let channels = Channels::new(rounding.values.shape(), axis);
    let mut levels = rounding.values.slice::<i8>().to_vec();
    let bounding = channels.move_pairs(&mut levels, Vec::new());
    rounding.values = Tensor::new(rounding.values.shape(), &levels);
    bounding
}

/// Where the weights of each output channel stand.
pub(crate) struct Channels {
    count: usize,
    /// Inputs, and the window of a convolution.
    shape: Vec<usize>,
    /// Between the first weights of two channels, and between two weights of one.
    strides: (usize, usize),
}

impl Channels {
    /// The outputs stand on the first axis, or on the second of a matrix.
    fn new(shape: &[usize], axis: usize) -> Self {
        if axis == 0 {
            let size = shape[1..].iter().product();
            return Self { count: shape[0], shape: shape[1..].to_vec(), strides: (size, 1) };
        }
        Self::of_columns(shape[0], shape[1])
    }

    /// Of a matrix [inputs, outputs].
    pub(crate) fn of_columns(inputs: usize, outputs: usize) -> Self {
        Self { count: outputs, shape: vec![inputs], strides: (1, outputs) }
    }

    /// Makes the scales of channels at risk coarser where that costs less than moving pairs; gives
    /// the channels that were at risk.
    pub(crate) fn coarsen(&self, w: &[f32], scales: &mut [f32], level_max: i8) -> Vec<usize> {
        let pairs = pairs_of(&self.shape);
        let mut at_risk = Vec::new();
        for (index, scale) in scales.iter_mut().enumerate() {
            if let Some(safe) = safe_scale(&self.gather(w, index), &pairs, *scale, level_max) {
                *scale = safe;
                at_risk.push(index);
            }
        }
        at_risk
    }

    /// Moves the pairs that are at risk still; second-order rounding may have made others than those
    /// of `at_risk`.
    pub(crate) fn move_pairs(&self, levels: &mut [i8], at_risk: Vec<usize>) -> Bounding {
        let pairs = pairs_of(&self.shape);
        let mut bounding = Bounding { channels: self.count, at_risk: at_risk.len(), moved: 0 };
        let mut known = at_risk.into_iter().peekable();
        for index in 0..self.count {
            let was_at_risk = known.next_if_eq(&index).is_some();
            let mut channel = self.gather(levels, index);
            let moved = move_pairs(&mut channel, &pairs, LevelRange::ALL);
            if moved > 0 {
                self.places(index).zip(channel).for_each(|(place, level)| levels[place] = level);
                bounding.moved += moved;
                bounding.at_risk += usize::from(!was_at_risk);
            }
        }
        bounding
    }

    fn places(&self, index: usize) -> impl Iterator<Item = usize> + use<> {
        let size: usize = self.shape.iter().product();
        let (first, step) = (index * self.strides.0, self.strides.1);
        (0..size).map(move |k| first + k * step)
    }

    fn gather<T: Copy>(&self, values: &[T], index: usize) -> Vec<T> {
        self.places(index).map(|place| values[place]).collect()
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
            quantize_safely("w", &Tensor::new(shape, w), axis, 127).unwrap()
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

    #[test]
    fn pairs_that_another_rounding_made_are_moved_too() {
        let channels = Channels::of_columns(2, 2);
        let mut levels = [100, 1, 29, 127];
        let bounding = channels.move_pairs(&mut levels, Vec::new());
        assert_eq!(bounding, Bounding { channels: 2, at_risk: 1, moved: 1 });
        assert_eq!(levels, [99, 1, 29, 127]);
    }
}
