//! How finely values are quantized.

use std::fmt;

use serde::Deserialize;

/// Bits of a value, as a recipe writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub(super) enum Bits {
    /// 32: not quantized.
    Float,
    Count(u8),
    Ternary,
    Binary,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(i64),
    Word(String),
}

impl TryFrom<Written> for Bits {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Number(32) => Ok(Self::Float),
            Written::Number(bits @ (2 | 3 | 4 | 7 | 8 | 16)) => Ok(Self::Count(bits as u8)),
            Written::Number(bits) => Err(format!("{bits} bits are not supported")),
            Written::Word(word) if word == "ternary" => Ok(Self::Ternary),
            Written::Word(word) if word == "binary" => Ok(Self::Binary),
            Written::Word(word) => Err(format!("bits are no \"{word}\"")),
        }
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float => f.write_str("32"),
            Self::Count(bits) => write!(f, "{bits}"),
            Self::Ternary => f.write_str("\"ternary\""),
            Self::Binary => f.write_str("\"binary\""),
        }
    }
}

/// Levels of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WeightGrid {
    /// −1 and 1.
    Signs,
    /// All integers between the two.
    Levels { low: i64, high: i64 },
}

impl Bits {
    /// Levels of a weight: with 7 and 8 bits as many on both sides of 0, as kernels like them; with
    /// fewer the whole type. `None` where a weight has no such bits, or stays in float.
    pub(super) fn weight_grid(self) -> Option<WeightGrid> {
        Some(match self {
            Self::Binary => WeightGrid::Signs,
            Self::Ternary => WeightGrid::Levels { low: -1, high: 1 },
            Self::Count(bits @ 7..=8) => {
                let high = (1 << (bits - 1)) - 1;
                WeightGrid::Levels { low: -high, high }
            }
            Self::Count(bits @ 2..=4) => {
                let end = 1 << (bits - 1);
                WeightGrid::Levels { low: -end, high: end - 1 }
            }
            Self::Float | Self::Count(_) => return None,
        })
    }

    /// The greatest level of an activation. `None` where it has no such bits, or stays in float.
    pub(super) fn activation_levels(self) -> Option<u16> {
        match self {
            // What reads weights of 7 bits is u8.
            Self::Count(7) => Some(255),
            Self::Count(bits) => Some((u32::MAX >> (32 - u32::from(bits))) as u16),
            Self::Float | Self::Ternary | Self::Binary => None,
        }
    }

    /// Words for a report.
    pub(super) fn words(self) -> String {
        match self {
            Self::Ternary => "3 levels".into(),
            Self::Binary => "2 levels".into(),
            bits => format!("{bits} bits"),
        }
    }

    /// Whether a product of such weights has kernels that sum integers.
    pub(super) fn is_integer_product(self) -> bool {
        matches!(self, Self::Count(7 | 8))
    }

    /// The operator set in which there are integers of this size, or whose operators unpack them.
    pub(super) fn opset(self, has_int2: bool, packs: bool) -> i64 {
        match self {
            Self::Float | Self::Count(7 | 8) => 13,
            Self::Count(2) | Self::Ternary | Self::Binary if has_int2 => 25,
            Self::Ternary | Self::Binary if packs => 13,
            Self::Count(_) | Self::Ternary | Self::Binary => 21,
        }
    }

    /// The finer of two.
    pub(super) fn finer(self, other: Self) -> Self {
        let order = |bits: Self| match bits {
            Self::Binary => 0,
            Self::Ternary => 1,
            Self::Count(bits) => bits,
            Self::Float => 32,
        };
        if order(other) > order(self) { other } else { self }
    }
}
