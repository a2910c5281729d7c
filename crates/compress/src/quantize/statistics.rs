//! What calibration remembers of a value: per channel its extremes and moments, and one histogram.

use attar_tensor::Tensor;

use super::histogram::Histogram;

/// Values of one batch that go into the histogram; of a larger tensor every n-th does.
const HISTOGRAM_VALUES_MAX: usize = 1 << 16;
/// Weight of the newest batch in the moving average of extremes.
const MOVING_WEIGHT: f32 = 0.01;

/// Values kept of a value whose channels may be divided: 768 KiB.
const SAMPLE_VALUES_MAX: usize = 3 << 16;

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
    sample: Option<Sample>,
}

impl Statistics {
    pub(crate) fn new(axis: ChannelAxis, importance: Vec<f32>) -> Self {
        Self {
            axis,
            importance,
            low: Vec::new(),
            high: Vec::new(),
            sum: Vec::new(),
            square_sum: Vec::new(),
            count: 0,
            moving: None,
            histogram: Histogram::default(),
            sample: None,
        }
    }

    /// The same, with rows kept from which [`divided`](Self::divided) makes a histogram.
    pub(crate) fn with_sample(mut self) -> Self {
        self.sample = Some(Sample::default());
        self
    }

    /// Whether rows are kept.
    pub(crate) fn has_sample(&self) -> bool {
        self.sample.is_some()
    }

    /// Lets go of the rows that were kept.
    pub(crate) fn drop_sample(&mut self) {
        self.sample = None;
    }

    /// What would have been seen, had the channels been divided and their weights multiplied: ends
    /// and moments to the last bit of f32, the histogram of the rows that were kept and of the ends.
    pub(crate) fn divided(&self, divisors: &[f32]) -> Self {
        let by = |values: &[f32]| values.iter().zip(divisors).map(|(x, s)| x / s).collect();
        let squared = divisors.iter().map(|s| s * s);
        let mut divided = Self::new(self.axis, Vec::new());
        divided.importance =
            self.importance.iter().zip(squared).map(|(weight, squared)| weight * squared).collect();
        (divided.low, divided.high, divided.count) = (by(&self.low), by(&self.high), self.count);
        let divisors_f64 = || divisors.iter().map(|&s| f64::from(s));
        divided.sum = self.sum.iter().zip(divisors_f64()).map(|(sum, s)| sum / s).collect();
        let squares = self.square_sum.iter().zip(divisors_f64());
        divided.square_sum = squares.map(|(sum, s)| sum / (s * s)).collect();
        // The moving ends lie as far within the others as before.
        let part = |moving: f32, end: f32| if end == 0.0 { 1.0 } else { moving / end };
        divided.moving = self.moving.map(|(low, high)| {
            let [low, high] = [part(low, self.lowest()), part(high, self.highest())];
            (low * divided.lowest(), high * divided.highest())
        });
        let Some(sample) = &self.sample else { return divided };
        let channels = divisors.len();
        let weight = |channel: usize| divided.importance.get(channel).map_or(1.0, |weight| *weight);
        for row in sample.rows.chunks_exact(channels) {
            for (channel, (x, s)) in row.iter().zip(divisors).enumerate() {
                divided.histogram.add(x / s, weight(channel));
            }
        }
        // Each end was seen once at least, whether or not its row was kept.
        if sample.step > 1 {
            for channel in 0..channels {
                for end in [divided.low[channel], divided.high[channel]] {
                    divided.histogram.add(end, weight(channel) / sample.step as f32);
                }
            }
        }
        divided
    }

    /// Adds the ends and moments of another value with the same channels.
    pub(crate) fn join(&mut self, other: &Self) {
        let lows = self.low.iter_mut().zip(&other.low);
        lows.for_each(|(low, other)| *low = low.min(*other));
        let highs = self.high.iter_mut().zip(&other.high);
        highs.for_each(|(high, other)| *high = high.max(*other));
        self.sum.iter_mut().zip(&other.sum).for_each(|(sum, other)| *sum += other);
        let squares = self.square_sum.iter_mut().zip(&other.square_sum);
        squares.for_each(|(sum, other)| *sum += other);
        self.count += other.count;
    }

    /// Moves the ends of every channel apart by a factor, though not beyond those of all together.
    pub(crate) fn widen(&mut self, factor: f32) {
        let [lowest, highest] = [self.lowest().min(0.0), self.highest().max(0.0)];
        self.low.iter_mut().for_each(|low| *low = (*low * factor).min(*low).max(lowest));
        self.high.iter_mut().for_each(|high| *high = (*high * factor).max(*high).min(highest));
    }

    pub(crate) fn axis(&self) -> ChannelAxis {
        self.axis
    }

    /// Takes in one batch. Returns whether all values were finite; if not, what is held is of no
    /// use any more.
    pub(crate) fn fold(&mut self, tensor: &Tensor) -> bool {
        let [outer, channels, inner] = self.axis.split(tensor.shape());
        let values = tensor.values::<f32>();
        if values.is_empty() {
            return true;
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
        if let Some(sample) = &mut self.sample {
            sample.fold(&values, [outer, channels, inner]);
        }
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

/// Every n-th row of channels; whenever there are too many, every other row goes.
#[derive(Clone)]
struct Sample {
    /// One after the other.
    rows: Vec<f32>,
    seen: usize,
    /// Of so many rows one is kept.
    step: usize,
}

impl Default for Sample {
    fn default() -> Self {
        Self { rows: Vec::new(), seen: 0, step: 1 }
    }
}

impl Sample {
    fn fold(&mut self, values: &[f32], [outer, channels, inner]: [usize; 3]) {
        let end = self.seen + outer * inner;
        let mut row = self.seen.next_multiple_of(self.step);
        while row < end {
            let (image, place) = ((row - self.seen) / inner, (row - self.seen) % inner);
            let first = image * channels * inner + place;
            self.rows.extend(values[first..].iter().step_by(inner).take(channels));
            if self.rows.len() > SAMPLE_VALUES_MAX.max(channels) {
                self.thin(channels);
            }
            row = (row + 1).next_multiple_of(self.step);
        }
        self.seen = end;
    }

    fn thin(&mut self, channels: usize) {
        self.step *= 2;
        let every_other = self.rows.chunks_exact(channels).step_by(2);
        self.rows = every_other.flatten().copied().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of three channels, the last a hundred times the others, from a fixed sequence.
    fn rows(count: usize) -> Vec<f32> {
        let mut state = 7_u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as f32 / u32::MAX as f32 - 0.4
        };
        (0..count).flat_map(|_| [next(), next(), 100.0 * next()]).collect()
    }

    const DIVISORS: [f32; 3] = [0.5, 2.0, 100.0];

    fn seen(axis: ChannelAxis, batches: &[Tensor]) -> Statistics {
        let mut seen = Statistics::new(axis, vec![1.0, 2.0, 3.0]).with_sample();
        assert!(batches.iter().all(|batch| seen.fold(batch)));
        seen
    }

    #[test]
    fn quotients_have_the_ends_and_moments_and_bins_of_divided_values() {
        let values = rows(1000);
        let divided: Vec<f32> = values
            .chunks_exact(3)
            .flat_map(|row| [0, 1, 2].map(|c| row[c] / DIVISORS[c]))
            .collect();
        let before = seen(ChannelAxis::Last, &[Tensor::new(&[1000, 3], &values)]);
        let found = before.divided(&DIVISORS);
        let mut expected = Statistics::new(ChannelAxis::Last, vec![0.25, 8.0, 30_000.0]);
        assert!(expected.fold(&Tensor::new(&[1000, 3], &divided)));
        assert_eq!((&found.low, &found.high), (&expected.low, &expected.high));
        assert_eq!(found.histogram.occupied(), expected.histogram.occupied());
        assert_eq!(found.moving, expected.moving);
        for (a, b) in found.square_sum.iter().zip(&expected.square_sum) {
            assert!((a / b - 1.0).abs() < 1e-6, "{a} {b}");
        }
    }

    #[test]
    fn a_sample_of_many_rows_has_their_spread_and_their_ends() {
        let count = SAMPLE_VALUES_MAX;
        let mut values = rows(count);
        // Met once, in a row that is not kept.
        values[3 * 4321] = 10.0;
        let batches: Vec<Tensor> =
            values.chunks(3 * 1000).map(|rows| Tensor::new(&[rows.len() / 3, 3], rows)).collect();
        let seen = seen(ChannelAxis::Last, &batches);
        let sample = seen.sample.as_ref().unwrap();
        assert_eq!(sample.step, 4);
        let rows = values.chunks_exact(3).step_by(4).flatten();
        assert!(sample.rows.iter().eq(rows), "every fourth row");
        let bins = seen.divided(&DIVISORS).histogram.occupied();
        let last = bins.last().unwrap();
        assert!((last.value - 20.0).abs() < 0.5 && last.weight == 0.25 / 4.0, "{last:?}");
    }

    #[test]
    fn pixels_are_the_rows_of_planes() {
        let values: Vec<f32> = (0..24).map(|x| x as f32).collect();
        let seen = seen(ChannelAxis::Second, &[Tensor::new(&[2, 3, 2, 2], &values)]);
        let rows = &seen.sample.as_ref().unwrap().rows;
        assert_eq!(rows[..6], [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]);
        assert_eq!(rows[21..], [15.0, 19.0, 23.0]);
    }
}
