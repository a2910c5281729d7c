//! Softmax over rows: y = exp(x − max x) / Σ exp(x − max x).

use super::math;
use super::vectorized;

/// Lanes of the sums. Element i is added in lane i mod 16 whatever the row's length, so zeros
/// appended by padding change no bit of a row's result.
pub(crate) const LANES: usize = 16;

/// Adds lanes in one fixed order.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The greatest of lanes that are no NaN.
#[inline(always)]
pub(crate) fn max_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            let other = lanes[lane + width];
            lanes[lane] = if other > lanes[lane] { other } else { lanes[lane] };
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn row_max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        lanes[lane] = if value > lanes[lane] { value } else { lanes[lane] };
    }
    max_lanes(lanes)
}

/// x ← exp(x − max) and the sum of the results.
#[inline(always)]
fn exp_sum<const FMA: bool>(row: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = math::exp_of_negative::<FMA>(chunk[lane] - max);
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, value) in rest.iter_mut().enumerate() {
        *value = math::exp_of_negative::<FMA>(*value - max);
        lanes[lane] += *value;
    }
    sum_lanes(lanes)
}

vectorized! {
    /// Softmax of each row of `data`, in place. A row of −∞ alone gives NaN, as the formula does.
    pub(crate) fn softmax_rows<FMA>(data: &mut [f32], row_size: usize) {
        for row in data.chunks_exact_mut(row_size) {
            let max = row_max(row);
            let sum = exp_sum::<FMA>(row, max);
            let factor = 1.0 / sum;
            for value in row {
                *value *= factor;
            }
        }
    }

    /// As [`softmax_rows`], with the logarithm of each row's Σ exp(x).
    pub(crate) fn softmax_rows_with_logs<FMA>(
        data: &mut [f32],
        row_size: usize,
        logs: &mut [f64],
    ) {
        for (row, log) in data.chunks_exact_mut(row_size).zip(logs) {
            let max = row_max(row);
            let sum = exp_sum::<FMA>(row, max);
            *log = f64::from(max) + f64::from(sum).ln();
            let factor = 1.0 / sum;
            for value in row {
                *value *= factor;
            }
        }
    }

    /// The logarithm of the softmax of each row of `data`, in place.
    pub(crate) fn log_softmax_rows<FMA>(data: &mut [f32], row_size: usize) {
        for row in data.chunks_exact_mut(row_size) {
            let max = row_max(row);
            let mut lanes = [0.0_f32; LANES];
            let (chunks, rest) = row.as_chunks::<LANES>();
            for chunk in chunks {
                for lane in 0..LANES {
                    lanes[lane] += math::exp::<FMA>(chunk[lane] - max);
                }
            }
            for (lane, &value) in rest.iter().enumerate() {
                lanes[lane] += math::exp::<FMA>(value - max);
            }
            let logarithm = sum_lanes(lanes).ln();
            for value in row {
                *value = *value - max - logarithm;
            }
        }
    }

    /// Softmax of scale·row + mask over each row, in place. The mask is one row for all.
    pub(crate) fn masked_softmax_rows<FMA>(
        data: &mut [f32],
        row_size: usize,
        scale: f32,
        mask: Option<&[f32]>,
    ) {
        for row in data.chunks_exact_mut(row_size) {
            match mask {
                Some(mask) => {
                    for (value, &mask) in row.iter_mut().zip(mask) {
                        *value = math::fma::<FMA>(*value, scale, mask);
                    }
                }
                None => row.iter_mut().for_each(|value| *value *= scale),
            }
            let max = row_max(row);
            let sum = exp_sum::<FMA>(row, max);
            let factor = 1.0 / sum;
            for value in row {
                *value *= factor;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_padding_changes_no_bit_of_a_row() {
        let row: Vec<f32> = (0..23).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let mut alone = row.clone();
        masked_softmax_rows(&mut alone, 23, 0.5, Some(&[0.0; 23]));
        for padded_size in [24, 32, 40, 129] {
            let mut padded = row.clone();
            padded.resize(padded_size, 1.5);
            let mut mask = vec![0.0; 23];
            mask.resize(padded_size, -1e9);
            masked_softmax_rows(&mut padded, padded_size, 0.5, Some(&mask));
            assert_eq!(padded[..23], alone[..]);
            assert!(padded[23..].iter().all(|&p| p == 0.0));
        }
    }
}
