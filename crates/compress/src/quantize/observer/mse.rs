//! The range of least squared error: clipped values against coarser steps.

use super::super::histogram::Bin;
use super::super::nodes::ActivationRange;
use super::Seen;

/// Each range that is tried at one end, of the one before.
const SHRINK: f32 = 0.95;

/// Shrinks one end after the other, from the whole range inwards, until neither gains.
pub(super) fn range(seen: &Seen) -> (f32, f32) {
    let whole = (seen.low.min(0.0), seen.high.max(0.0));
    let mut best = whole;
    let mut least = error(&seen.bins, seen.range(best.0, best.1)).sum();
    loop {
        let before = best;
        for is_high in [true, false] {
            let mut end = if is_high { whole.1 } else { whole.0 };
            while end.abs() > f32::MIN_POSITIVE {
                let tried = if is_high { (best.0, end) } else { (end, best.1) };
                let found = error(&seen.bins, seen.range(tried.0, tried.1));
                if found.sum() < least {
                    (least, best) = (found.sum(), tried);
                }
                // A narrower range clips more still.
                if found.clipping > least {
                    break;
                }
                end *= SHRINK;
            }
        }
        if best == before {
            return best;
        }
    }
}

/// Σ weight · (x̂ − x)², in two parts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SquaredError {
    clipping: f64,
    rounding: f64,
}

impl SquaredError {
    pub(super) fn sum(self) -> f64 {
        self.clipping + self.rounding
    }
}

/// The error of all bins. Within a bin wider than a step, values fall anywhere between two levels.
pub(super) fn error(bins: &[Bin], range: ActivationRange) -> SquaredError {
    let scale = f64::from(range.scale);
    let (low, high) = (f64::from(range.low()), f64::from(range.high()));
    let mut error = SquaredError::default();
    for bin in bins {
        let (value, width) = (f64::from(bin.value), f64::from(bin.width));
        if value < low || value > high {
            error.clipping += bin.weight * (value - value.clamp(low, high)).powi(2);
        } else if width > scale {
            error.rounding += bin.weight * scale * scale / 12.0;
        } else if value != 0.0 {
            // Level 0 is exact, and values at 0 are most of what follows a Relu.
            let level = (value / scale).round();
            let middle = value - level * scale;
            error.rounding += bin.weight * (middle * middle + width * width / 12.0);
        }
    }
    error
}
