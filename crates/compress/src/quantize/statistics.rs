//! What calibration remembers of a value: per channel its extremes and moments, and one histogram.

use attar_tensor::Tensor;

use super::histogram::Histogram;

/// Values of one batch that go into the histogram; of a larger tensor every n-th does.
const HISTOGRAM_VALUES_MAX: usize = 1 << 16;
/// Weight of the newest batch in the moving average of extremes.
const MOVING_WEIGHT: f32 = 0.01;

/// Where the channels of a value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelAxis {
    /// The axis that a matrix product sums over.
    Last,
    /// The channels of an image.
    Second,
}

impl ChannelAxis {
    /// Sizes of what stands outside of, along and inside the axis.
    pub(crate) fn split(self, shape: &[usize]) -> [usize; 3] {
        match (self, shape) {
            (_, []) => [1, 1, 1],
            (Self::Second, [outer, channels, inner @ ..]) => {
                [*outer, *channels, inner.iter().product()]
            }
            (_, [outer @ .., channels]) => [outer.iter().product(), *channels, 1],
        }
    }
}

/// Folded batch by batch; its size does not depend on how much was seen.
#[derive(Clone)]
pub(crate) struct Statistics {
    axis: ChannelAxis,
    /// What each channel is divided by before all else; empty for nothing.
    divisors: Vec<f32>,
    /// How much an error of each channel weighs in what is read: the sum of squares of the weights
    /// that meet it. Empty where nothing is known, which is 1 everywhere.
    importance: Vec<f32>,
    pub(crate) low: Vec<f32>,
    pub(crate) high: Vec<f32>,
    pub(crate) sum: Vec<f64>,
    pub(crate) square_sum: Vec<f64>,
    /// Values seen of each channel.
    pub(crate) count: usize,
    /// Moving averages of the extremes of a batch.
    pub(crate) moving: Option<(f32, f32)>,
    pub(crate) histogram: Histogram,
}

impl Statistics {
    pub(crate) fn new(axis: ChannelAxis, importance: Vec<f32>) -> Self {
        Self {
            axis,
            divisors: Vec::new(),
            importance,
            low: Vec::new(),
            high: Vec::new(),
            sum: Vec::new(),
            square_sum: Vec::new(),
            count: 0,
            moving: None,
            histogram: Histogram::default(),
        }
    }

    /// The same for values whose channels are divided, and their weights multiplied.
    pub(crate) fn divided(mut self, divisors: &[f32]) -> Self {
        self.divisors = divisors.to_vec();
        self.importance.iter_mut().zip(divisors).for_each(|(weight, s)| *weight *= s * s);
        self
    }

    pub(crate) fn axis(&self) -> ChannelAxis {
        self.axis
    }

    /// Takes in one batch. Returns whether all values were finite; if not, what is held is of no
    /// use any more.
    pub(crate) fn fold(&mut self, tensor: &Tensor) -> bool {
        let [outer, channels, inner] = self.axis.split(tensor.shape());
        let mut values = tensor.values::<f32>();
        if values.is_empty() {
            return true;
        }
        if self.divisors.len() == channels {
            let planes = values.to_mut().chunks_exact_mut(inner.max(1));
            for (plane, s) in planes.zip(self.divisors.iter().cycle()) {
                plane.iter_mut().for_each(|x| *x /= s);
            }
        }
        if self.low.len() != channels {
            // The first batch, or a value whose channels are no fixed number.
            let count = channels.max(self.low.len());
            self.low.resize(count, f32::INFINITY);
            self.high.resize(count, f32::NEG_INFINITY);
            self.sum.resize(count, 0.0);
            self.square_sum.resize(count, 0.0);
        }
        self.count += outer * inner;
        let batch = if inner == 1 {
            self.fold_rows(&values, channels)
        } else {
            self.fold_planes(&values, channels, inner)
        };
        let Some((low, high)) = batch else { return false };
        let (old_low, old_high) = self.moving.unwrap_or((low, high));
        self.moving = Some((
            old_low + MOVING_WEIGHT * (low - old_low),
            old_high + MOVING_WEIGHT * (high - old_high),
        ));
        self.fill_histogram(&values, channels, inner);
        true
    }

    /// Channels next to each other. The extremes of the batch, unless one is not finite.
    fn fold_rows(&mut self, values: &[f32], channels: usize) -> Option<(f32, f32)> {
        let mut low = vec![f32::INFINITY; channels];
        let mut high = vec![f32::NEG_INFINITY; channels];
        let mut sum = vec![0.0_f32; channels];
        let mut square_sum = vec![0.0_f32; channels];
        for row in values.chunks_exact(channels) {
            let extremes = low.iter_mut().zip(&mut high);
            let sums = sum.iter_mut().zip(&mut square_sum);
            for ((&x, (low, high)), (sum, square_sum)) in row.iter().zip(extremes).zip(sums) {
                *low = if x < *low { x } else { *low };
                *high = if x > *high { x } else { *high };
                *sum += x;
                *square_sum += x * x;
            }
        }
        let mut batch = (f32::INFINITY, f32::NEG_INFINITY);
        let mut is_finite = true;
        for channel in 0..channels {
            // A NaN is passed over by comparisons, not by sums.
            is_finite &= !sum[channel].is_nan() && low[channel].is_finite();
            is_finite &= high[channel].is_finite();
            batch = (batch.0.min(low[channel]), batch.1.max(high[channel]));
            self.take_in(
                channel,
                (low[channel], high[channel]),
                (sum[channel], square_sum[channel]),
            );
        }
        is_finite.then_some(batch)
    }

    /// Channels as planes of `inner` values.
    fn fold_planes(&mut self, values: &[f32], channels: usize, inner: usize) -> Option<(f32, f32)> {
        const LANES: usize = 16;
        let mut batch = (f32::INFINITY, f32::NEG_INFINITY);
        let mut is_finite = true;
        for (index, plane) in values.chunks_exact(inner).enumerate() {
            let mut low = [f32::INFINITY; LANES];
            let mut high = [f32::NEG_INFINITY; LANES];
            let mut sum = [0.0_f32; LANES];
            let mut square_sum = [0.0_f32; LANES];
            for part in plane.chunks(LANES) {
                for (lane, &x) in part.iter().enumerate() {
                    low[lane] = if x < low[lane] { x } else { low[lane] };
                    high[lane] = if x > high[lane] { x } else { high[lane] };
                    sum[lane] += x;
                    square_sum[lane] += x * x;
                }
            }
            let extremes = (
                low.iter().fold(f32::INFINITY, |m, &x| m.min(x)),
                high.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x)),
            );
            let sums = (sum.iter().sum::<f32>(), square_sum.iter().sum::<f32>());
            is_finite &= !sums.0.is_nan() && extremes.0.is_finite() && extremes.1.is_finite();
            batch = (batch.0.min(extremes.0), batch.1.max(extremes.1));
            self.take_in(index % channels, extremes, sums);
        }
        is_finite.then_some(batch)
    }

    fn take_in(&mut self, channel: usize, extremes: (f32, f32), sums: (f32, f32)) {
        self.low[channel] = self.low[channel].min(extremes.0);
        self.high[channel] = self.high[channel].max(extremes.1);
        self.sum[channel] += f64::from(sums.0);
        self.square_sum[channel] += f64::from(sums.1);
    }

    fn fill_histogram(&mut self, values: &[f32], channels: usize, inner: usize) {
        let is_weighted = self.importance.len() == channels;
        // An odd step meets all channels and all places.
        let step = values.len().div_ceil(HISTOGRAM_VALUES_MAX) | 1;
        if step == 1 && inner == 1 && is_weighted {
            for row in values.chunks_exact(channels) {
                for (&x, &weight) in row.iter().zip(&self.importance) {
                    self.histogram.add(x, weight);
                }
            }
            return;
        }
        for index in (0..values.len()).step_by(step) {
            let weight = if is_weighted { self.importance[index / inner % channels] } else { 1.0 };
            self.histogram.add(values[index], weight);
        }
    }

    pub(crate) fn lowest(&self) -> f32 {
        self.low.iter().fold(f32::INFINITY, |m, &x| m.min(x))
    }

    pub(crate) fn highest(&self) -> f32 {
        self.high.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x))
    }
}
