//! How often which magnitude was seen: a histogram whose bins are the leading bits of an f32.
//!
//! Bins are 1/64 of an octave-wide power of two, for every exponent and both signs, so no range has
//! to be known or grown: an outlier of 1e30 costs the values around 1 no resolution.

/// Bits of an f32 below its bin: sign, exponent and six bits of the mantissa are left.
const DROPPED_BITS: u32 = 17;
const BIN_COUNT: usize = 1 << (32 - DROPPED_BITS);

/// Weighted counts of values.
#[derive(Clone)]
pub(crate) struct Histogram {
    bins: Vec<f64>,
}

/// A bin that holds something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bin {
    pub(crate) value: f32,
    pub(crate) width: f32,
    pub(crate) weight: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { bins: vec![0.0; BIN_COUNT] }
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, value: f32, weight: f32) {
        self.bins[(value.to_bits() >> DROPPED_BITS) as usize] += f64::from(weight);
    }

    /// The bins that hold something, by rising value.
    pub(crate) fn occupied(&self) -> Vec<Bin> {
        let half = BIN_COUNT / 2;
        // Negative values come from the largest magnitude down.
        let order = (half..BIN_COUNT).rev().chain(0..half);
        order.filter(|&index| self.bins[index] > 0.0).map(|index| self.bin(index)).collect()
    }

    fn bin(&self, index: usize) -> Bin {
        let at = |bits: u32| f32::from_bits(bits << DROPPED_BITS);
        let [low, high] = [at(index as u32), at(index as u32 + 1)];
        // The last finite bin of a sign ends at infinity, or wraps to the other sign's zero.
        let width = if high.is_finite() && high != 0.0 { high - low } else { 0.0 };
        Bin { value: low + width / 2.0, width: width.abs(), weight: self.bins[index] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_ordered_by_value_and_hold_every_magnitude_to_a_sixty_fourth() {
        let mut histogram = Histogram::default();
        let values = [-3e38_f32, -1.0, -1e-39, 0.0, 1e-30, 1.0, 1.01, 3e38];
        values.iter().for_each(|&value| histogram.add(value, 2.0));
        let bins = histogram.occupied();
        assert_eq!(bins.iter().map(|bin| bin.weight).sum::<f64>(), 16.0);
        assert!(bins.windows(2).all(|pair| pair[0].value < pair[1].value), "{bins:?}");
        for value in [-3e38_f32, -1.0, 1e-30, 3e38] {
            let near = bins.iter().any(|bin| (bin.value / value - 1.0).abs() < 1.0 / 64.0);
            assert!(near, "{value}: {bins:?}");
        }
    }
}
