//! The range of least squared error: clipped values against coarser steps.

use super::super::histogram::Bin;
use super::super::nodes::ActivationRange;
use super::Seen;

/// Ranges tried at each end, each a little narrower than the one before.
const SHRINKS: usize = 64;
const SHRINK: f32 = 0.95;

/// Shrinks one end after the other, from the whole range inwards, until neither gains.
pub(super) fn range(seen: &Seen) -> (f32, f32) {
    let mut best = (seen.low.min(0.0), seen.high.max(0.0));
    let cost = |(low, high): (f32, f32)| error(&seen.bins, ActivationRange::new(low, high));
    let mut least = cost(best);
    loop {
        let before = best;
        for end in [1, 0] {
            let from = if end == 1 { seen.high.max(0.0) } else { seen.low.min(0.0) };
            if from == 0.0 {
                continue;
            }
            for power in 0..SHRINKS {
                let value = from * SHRINK.powi(power as i32);
                let tried = if end == 1 { (best.0, value) } else { (value, best.1) };
                let found = cost(tried);
                if found < least {
                    (least, best) = (found, tried);
                }
            }
        }
        if best == before {
            return best;
        }
    }
}

/// Σ weight · (x̂ − x)² over the bins. Within a bin wider than a step, values fall anywhere between
/// two levels.
pub(super) fn error(bins: &[Bin], range: ActivationRange) -> f64 {
    let scale = f64::from(range.scale);
    let (low, high) = (f64::from(range.low()), f64::from(range.high()));
    let squared = |bin: &Bin| {
        let (value, width) = (f64::from(bin.value), f64::from(bin.width));
        if value < low || value > high {
            let clipped = value.clamp(low, high);
            return (value - clipped).powi(2) + width * width / 12.0;
        }
        if width > scale {
            return scale * scale / 12.0;
        }
        let level = (value / scale).round();
        let error = value - level * scale;
        // Level 0 is exact, and values at 0 are most of what follows a Relu.
        error * error + if value == 0.0 { 0.0 } else { width * width / 12.0 }
    };
    bins.iter().map(|bin| bin.weight * squared(bin)).sum()
}
