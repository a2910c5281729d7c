//! The range of least Kullback-Leibler divergence between the values and their 8-bit form
//! (Migacz, "8-bit inference with TensorRT", 2017), cut at one magnitude on both sides.

use super::Seen;

const LINEAR_BINS: usize = 2048;
const LEVELS: usize = 256;
/// Parts of the largest magnitude between two tried thresholds, in bins.
const STEP: usize = 32;

pub(super) fn range(seen: &Seen) -> (f32, f32) {
    let (low, high) = (seen.low.min(0.0), seen.high.max(0.0));
    let size = f64::from(high) - f64::from(low);
    if size <= 0.0 {
        return (low, high);
    }
    let mut linear = vec![0.0_f64; LINEAR_BINS];
    for bin in &seen.bins {
        let place = (f64::from(bin.value) - f64::from(low)) / size * LINEAR_BINS as f64;
        linear[(place.max(0.0) as usize).min(LINEAR_BINS - 1)] += bin.weight;
    }
    let place = |value: f32| {
        let place = (f64::from(value) - f64::from(low)) / size * LINEAR_BINS as f64;
        (place.round() as usize).min(LINEAR_BINS)
    };
    let largest = high.max(-low);
    let mut best = (f64::INFINITY, (low, high));
    for kept in (STEP..=LINEAR_BINS).step_by(STEP) {
        let threshold = largest * (kept as f32 / LINEAR_BINS as f32);
        let tried = (low.max(-threshold), high.min(threshold));
        let (first, end) = (place(tried.0), place(tried.1));
        // Fewer bins than levels tell nothing.
        if end - first < LEVELS {
            continue;
        }
        let found = divergence(&linear, first, end);
        // Wider ranges come later and win ties.
        if found <= best.0 {
            best = (found, tried);
        }
    }
    best.1
}

/// KL(P ‖ Q): P the bins `first..end` with what was cut off put on the ends, Q the same bins in as
/// many steps as there are levels, each spread over those of its bins that hold something.
fn divergence(bins: &[f64], first: usize, end: usize) -> f64 {
    let mut p = bins[first..end].to_vec();
    let count = p.len();
    let inside = p.clone();
    p[0] += bins[..first].iter().sum::<f64>();
    p[count - 1] += bins[end..].iter().sum::<f64>();
    let mut q = vec![0.0; count];
    for level in 0..LEVELS {
        let (from, to) = (level * count / LEVELS, (level + 1) * count / LEVELS);
        let occupied = inside[from..to].iter().filter(|&&weight| weight > 0.0).count();
        let each = inside[from..to].iter().sum::<f64>() / occupied.max(1) as f64;
        for index in from..to {
            q[index] = if inside[index] > 0.0 { each } else { 0.0 };
        }
    }
    let (p_sum, q_sum) = (p.iter().sum::<f64>(), q.iter().sum::<f64>());
    if q_sum == 0.0 {
        return f64::INFINITY;
    }
    let floor = 1e-9;
    let terms = p.iter().zip(&q).filter(|(p, _)| **p > 0.0);
    terms.map(|(p, q)| p / p_sum * ((p / p_sum) / (q / q_sum).max(floor)).ln()).sum()
}
