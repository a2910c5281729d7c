//! Numbers that a recipe may hold only within their range.

use serde::Deserialize;

/// A number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Fraction(f64);

impl Fraction {
    pub(crate) const NOTHING: Self = Self(0.0);
    pub const HALF: Self = Self(0.5);

    /// The fraction whose part of `total` is `count`, rounding and all.
    pub(crate) fn of_count(count: usize, total: usize) -> Self {
        let share = (count as f64 + 0.25) / total.max(1) as f64;
        Self(share.min(1.0))
    }

    pub fn get(self) -> f64 {
        self.0
    }

    /// This part of `count`, rounded down.
    pub fn of(self, count: usize) -> usize {
        (self.0 * count as f64).floor() as usize
    }
}

impl TryFrom<f64> for Fraction {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, String> {
        if (0.0..=1.0).contains(&value) {
            Ok(Self(value))
        } else {
            Err(format!("{value} is not between 0 and 1"))
        }
    }
}
