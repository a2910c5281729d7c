//! Top-k accuracy and macro-F1.

/// Whether `label` is among the `count` best scores; of equal scores the lower class is better.
/// A NaN is worse than any score.
pub fn is_among_best(scores: &[f32], label: usize, count: usize) -> bool {
    let Some(&own) = scores.get(label).filter(|score| !score.is_nan()) else { return false };
    let better = scores.iter().enumerate();
    better.filter(|&(class, &score)| score > own || (score == own && class < label)).count() < count
}

/// The mean of F1 = 2·TP / (2·TP + FP + FN) over the classes that occur, of predicted and true
/// classes.
pub fn macro_f1(examples: impl Iterator<Item = (usize, usize)>) -> f64 {
    // Per class: right, predicted, true.
    let mut counts: Vec<[usize; 3]> = Vec::new();
    for (predicted, class) in examples {
        if counts.len() <= predicted.max(class) {
            counts.resize(predicted.max(class) + 1, [0; 3]);
        }
        counts[class][0] += usize::from(predicted == class);
        counts[predicted][1] += 1;
        counts[class][2] += 1;
    }
    counts.retain(|[_, predicted, class]| predicted + class > 0);
    let f1 =
        |[right, predicted, class]: &[usize; 3]| 2.0 * *right as f64 / (predicted + class) as f64;
    counts.iter().map(f1).sum::<f64>() / counts.len().max(1) as f64
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

    #[test]
    fn macro_f1_of_worked_classes() {
        // Class 0: 2·2/(3+2), class 1: 2·1/(1+2), class 4 never predicted: 0.
        let examples = [(0, 0), (0, 0), (1, 1), (0, 1), (1, 4)];
        let expected = (4.0 / 5.0 + 2.0 / 4.0 + 0.0) / 3.0;
        assert!((macro_f1(examples.into_iter()) - expected).abs() < 1e-12);
        assert_eq!(macro_f1(std::iter::empty()), 0.0);
    }
}
