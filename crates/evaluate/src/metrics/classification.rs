//! Top-k accuracy.

/// Whether `label` is among the `count` best scores; of equal scores the lower class is better.
/// A NaN is worse than any score.
pub fn is_among_best(scores: &[f32], label: usize, count: usize) -> bool {
    let Some(&own) = scores.get(label).filter(|score| !score.is_nan()) else { return false };
    let better = scores.iter().enumerate();
    better.filter(|&(class, &score)| score > own || (score == own && class < label)).count() < count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_class() {
        let scores = [0.1, 0.7, 0.7, 0.2];
        assert!(is_among_best(&scores, 1, 1));
        assert!(!is_among_best(&scores, 2, 1));
        assert!(is_among_best(&scores, 2, 2));
        assert!(!is_among_best(&scores, 9, 4));
        assert!(!is_among_best(&[f32::NAN], 0, 1));
    }
}
