//! Spearman's rank correlation: Pearson's of the ranks, equal values sharing their mean rank.

use crate::interval::{Interval, resampled_interval};

/// The correlation of two lists of the same length; 0 where one of them is constant.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    pearson(&ranks(a), &ranks(b))
}

/// The correlation with its interval, by drawing pairs.
pub fn spearman_interval(a: &[f64], b: &[f64]) -> Interval {
    resampled_interval(a.len(), 1000, |drawn| {
        let pick = |values: &[f64]| drawn.iter().map(|&index| values[index]).collect::<Vec<_>>();
        spearman(&pick(a), &pick(b))
    })
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let same = |&&index: &&usize| values[index] == values[order[start]];
        let count = order[start..].iter().take_while(same).count().max(1);
        let rank = start as f64 + (count - 1) as f64 / 2.0;
        order[start..start + count].iter().for_each(|&index| ranks[index] = rank);
        start += count;
    }
    ranks
}

fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len().max(1) as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        ab += (a - mean_a) * (b - mean_b);
        aa += (a - mean_a).powi(2);
        bb += (b - mean_b).powi(2);
    }
    if aa == 0.0 || bb == 0.0 { 0.0 } else { ab / (aa * bb).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(ranks(&[10.0, 20.0, 20.0, 5.0]), [1.0, 2.5, 2.5, 0.0]);
    }

    #[test]
    fn any_rising_curve_correlates_fully() {
        assert!((spearman(&[1.0, 2.0, 3.0], &[1.0, 8.0, 27.0]) - 1.0).abs() < 1e-12);
        assert_eq!(spearman(&[1.0, 2.0], &[3.0, 3.0]), 0.0);
    }
}
