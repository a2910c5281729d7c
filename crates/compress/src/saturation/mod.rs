//! Whether a static int8 model gives the same integers on every CPU.
//!
//! Sums of u8·i8 products are exact in 32 bits on CPUs with VNNI or NEON. AVX2 without VNNI has only
//! `vpmaddubsw`, which adds two products that are neighbours in K and saturates them to 16 bits:
//! 255·127 + 255·2 is beyond. A model is safe where no pair of weights can get there with the
//! levels that its input can take; `quantize.static` rounds its weights so.

mod bound;
mod isa;
mod pairs;
mod product;

pub(crate) use bound::{move_pairs, safe_scale};
pub use isa::Isa;
pub(crate) use pairs::pairs_of;
pub use product::{IntegerProduct, Risk, integer_products};

/// The levels that a u8 activation can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelRange {
    pub low: u8,
    pub high: u8,
}

impl LevelRange {
    /// What any input can be.
    pub const ALL: Self = Self { low: 0, high: 255 };

    /// The least and the greatest of `level · weight`.
    fn products(self, weight: i8) -> (i32, i32) {
        let (low, high) = (i32::from(self.low), i32::from(self.high));
        let weight = i32::from(weight);
        if weight < 0 { (high * weight, low * weight) } else { (low * weight, high * weight) }
    }

    /// Whether the sum of two products can leave 16 bits.
    pub(crate) fn saturates(self, a: i8, b: i8) -> bool {
        if u16::from(a.unsigned_abs()) + u16::from(b.unsigned_abs()) <= 128 {
            // 255·128 has 16 bits.
            return false;
        }
        let (a, b) = (self.products(a), self.products(b));
        a.0 + b.0 < i32::from(i16::MIN) || a.1 + b.1 > i32::from(i16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_saturates_from_a_sum_of_129_on_over_all_levels() {
        let all = LevelRange::ALL;
        assert!(!all.saturates(127, 1) && all.saturates(127, 2));
        assert!(!all.saturates(-64, -64) && all.saturates(-64, -65));
        assert!(!all.saturates(127, -127));
        assert!(!LevelRange { low: 0, high: 128 }.saturates(127, 127));
    }
}
