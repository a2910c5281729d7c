//! What a metric is taken of, example by example, so that differences between models can be paired.

use attar_evaluate::metrics::{is_among_best, macro_f1, spearman, spearman_interval};
use attar_evaluate::{
    Embeddings, EvaluateError, Interval, mean_interval, paired_interval, resampled_interval,
};
use attar_tensor::Tensor;

use crate::Error;

/// One metric of one model.
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    values: Vec<f64>,
    statistic: Statistic,
}

/// What a list of values comes to.
enum Statistic {
    Mean,
    /// A correlation with the scores of the pairs belongs to the whole list.
    Spearman(Vec<f64>),
    /// Values are the predicted classes, held against the true ones.
    MacroF1(Vec<usize>),
    /// R²: one less the sum of the values, squared errors, over that of the targets' squared
    /// distances from their mean.
    Explained(Vec<f64>),
}

/// Samples drawn of a statistic that belongs to the whole list.
const RESAMPLES: usize = 1000;

impl Measure {
    pub(crate) fn mean(name: &'static str, values: Vec<f64>) -> Self {
        Self { name, values, statistic: Statistic::Mean }
    }

    /// The metric of all examples.
    pub(crate) fn value(&self) -> f64 {
        self.of(&self.values, &(0..self.values.len()).collect::<Vec<_>>())
    }

    /// With its 95 % interval.
    pub(crate) fn interval(&self) -> Interval {
        match &self.statistic {
            Statistic::Mean => mean_interval(&self.values),
            Statistic::Spearman(scores) => spearman_interval(&self.values, scores),
            _ => resampled_interval(self.values.len(), RESAMPLES, |drawn| {
                self.of(&self.values, drawn)
            }),
        }
    }

    /// Against the same metric of another model, on the same examples.
    pub(crate) fn difference(&self, before: &Self) -> Interval {
        if matches!(self.statistic, Statistic::Mean) {
            return paired_interval(&before.values, &self.values);
        }
        // What belongs to the whole list is drawn again and again, not averaged.
        resampled_interval(self.values.len(), RESAMPLES, |drawn| {
            self.of(&self.values, drawn) - self.of(&before.values, drawn)
        })
    }

    /// The metric of the examples drawn.
    fn of(&self, values: &[f64], drawn: &[usize]) -> f64 {
        let pick = |list: &[f64]| drawn.iter().map(|&index| list[index]).collect::<Vec<_>>();
        let sum = |list: &[f64]| drawn.iter().map(|&index| list[index]).sum::<f64>();
        match &self.statistic {
            Statistic::Mean => sum(values) / drawn.len().max(1) as f64,
            Statistic::Spearman(scores) => spearman(&pick(values), &pick(scores)),
            Statistic::MacroF1(classes) => {
                macro_f1(drawn.iter().map(|&index| (values[index] as usize, classes[index])))
            }
            Statistic::Explained(distances) => {
                1.0 - sum(values) / sum(distances).max(f64::MIN_POSITIVE)
            }
        }
    }
}

/// Likeness as a model sees it, held against the scores of the pairs.
pub(crate) fn likeness(values: Vec<f64>, scores: &[f64]) -> Measure {
    Measure { name: "Spearman", values, statistic: Statistic::Spearman(scores.to_vec()) }
}

/// 1 for every example whose class is among the best so many, else 0.
pub(crate) fn hits(rows: &Embeddings, classes: &[usize], count: usize) -> Vec<f64> {
    let examples = classes.iter().enumerate();
    let is_hit = |(row, &class): (usize, &usize)| is_among_best(rows.row(row), class, count);
    examples.map(|example| f64::from(u8::from(is_hit(example)))).collect()
}

/// Accuracy, and macro-F1, for which no class counts more than another.
pub(crate) fn class_measures(rows: &Embeddings, classes: &[usize]) -> Vec<Measure> {
    // Of equal scores the first class.
    let best = |row: usize| {
        let scores = rows.row(row).iter().enumerate().rev();
        scores.max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(class, _)| class) as f64
    };
    vec![
        Measure::mean("accuracy", hits(rows, classes, 1)),
        Measure {
            name: "macro-F1",
            values: (0..rows.count()).map(best).collect(),
            statistic: Statistic::MacroF1(classes.to_vec()),
        },
    ]
}

/// R² over all columns of the targets.
///
/// # Errors
/// Targets of another width than the rows.
pub(crate) fn value_measures(rows: &Embeddings, targets: &Tensor) -> Result<Vec<Measure>, Error> {
    let targets = targets.values::<f32>();
    let (count, width) = (rows.count().max(1), rows.dimension.max(1));
    if targets.len() != rows.values.len() {
        return Err(EvaluateError::OutputWidth {
            found: rows.dimension,
            expected: targets.len() / count,
            what: "values",
        }
        .into());
    }
    let mean = |column: usize| {
        let values = targets.iter().skip(column).step_by(width);
        values.map(|&x| f64::from(x)).sum::<f64>() / count as f64
    };
    let means: Vec<f64> = (0..width).map(mean).collect();
    let distances = |other: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        let distance = |row: usize| {
            let targets = targets[row * width..][..width].iter().enumerate();
            targets.map(|(column, &t)| (f64::from(t) - other(row, column)).powi(2)).sum()
        };
        (0..rows.count()).map(distance).collect()
    };
    let statistic = Statistic::Explained(distances(&|_, column| means[column]));
    let values = distances(&|row, column| f64::from(rows.row(row)[column]));
    Ok(vec![Measure { name: "R²", values, statistic }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_met_are_explained_and_their_mean_explains_nothing() {
        let targets = Tensor::new(&[4, 1], &[1.0_f32, 2.0, 3.0, 6.0]);
        let rows = |values: &[f32]| Embeddings { dimension: 1, values: values.to_vec() };
        let met = value_measures(&rows(&[1.0, 2.0, 3.0, 6.0]), &targets).unwrap();
        assert!((met[0].value() - 1.0).abs() < 1e-12);
        let mean = value_measures(&rows(&[3.0; 4]), &targets).unwrap();
        assert!(mean[0].value().abs() < 1e-12);
        assert!((met[0].difference(&mean[0]).value - 1.0).abs() < 1e-12);
        assert!(value_measures(&rows(&[3.0; 8]), &targets).is_err());
    }

    #[test]
    fn accuracy_counts_examples_and_macro_f1_classes() {
        let rows = Embeddings { dimension: 2, values: vec![1.0, 0.0, 2.0, 0.0, 5.0, 5.0] };
        let measures = class_measures(&rows, &[0, 0, 1]);
        assert!((measures[0].value() - 2.0 / 3.0).abs() < 1e-12);
        // Class 0: 2·2/(3+2); class 1 is never predicted.
        assert!((measures[1].value() - 0.4).abs() < 1e-12);
    }
}
