//! What each product loses at each sparsity of its weights, from rows seen in one pass over data.
//!
//! With rows X and e = w − ŵ of the weights that would go, the relative error is
//! ‖X·E‖ / ‖X·W‖, for every tensor and every sparsity at once: nothing is run again. Its interval
//! is that of a bootstrap over batches, whose rows belong together.

use std::collections::BTreeMap;

use attar_graph::{Edit, Model, Plan, apply};
use attar_ops::logits::weighted_rows;
use attar_tensor::Tensor;
use attar_train::Rng;

use super::{Estimate, Level, LevelSensitivity, Measured, Sensitivity, TensorSensitivity};
use crate::importance::{Importance, Scoring};
use crate::moments::{Product, RowSample, products};
use crate::prune::{Cut, prunable};
use crate::quantize::calibrate::observe;
use crate::{Context, Fraction, PassError};

/// What to find out.
#[derive(Clone, Debug)]
pub struct SensitivityOptions {
    /// One of [`IMPORTANCES`](crate::IMPORTANCES).
    pub importance: String,
    /// By rising sparsity.
    pub sparsities: Vec<f64>,
    /// Of these, those at which the pruned model is handed over to be measured.
    pub measured: Vec<f64>,
    /// Of whatever is drawn.
    pub seed: u64,
}

impl SensitivityOptions {
    /// The sparsities, all of which are between 0 and 1.
    pub(super) fn fractions(&self) -> Result<Vec<Fraction>, PassError> {
        let all = self.sparsities.iter().chain(&self.measured);
        let fractions: Result<Vec<_>, String> = all.map(|&x| Fraction::try_from(x)).collect();
        let mut fractions = fractions.map_err(wrong)?;
        fractions.truncate(self.sparsities.len());
        Ok(fractions)
    }
}

pub(super) fn wrong(message: String) -> PassError {
    PassError::Data { message, hint: "see `attar sensitivity --help`".into() }
}

/// Draws of a bootstrap.
const DRAWS: usize = 400;

/// Finds out what pruning each tensor by itself does. `measure` is handed the model with one
/// tensor pruned, at the sparsities that are to be measured, and a line saying which; what it
/// returns is kept beside what is predicted.
///
/// # Errors
/// No data, an importance or a sparsity that there is not, or what `measure` returns.
pub fn sensitivity<E: From<PassError>>(
    model: &Model,
    context: &Context,
    options: &SensitivityOptions,
    measure: &mut dyn FnMut(&Model, [usize; 2]) -> Result<Measured, E>,
) -> Result<Sensitivity, E> {
    let importance = Importance::try_from(options.importance.clone()).map_err(wrong)?;
    let fractions = options.fractions()?;
    let products = products(model, &prunable(model, context)?);
    let all: Vec<(usize, &Product)> = products.iter().enumerate().collect();
    let samples = observe_rows(model, context, &all)?;
    let names: Vec<String> = products.iter().map(|product| product.name.clone()).collect();
    let scoring = Scoring { model, names: &names, context, seed: options.seed };
    let scores = importance.scores(&scoring)?;
    let total = products.len() * options.measured.len();
    let mut done = 0;
    let mut found = Sensitivity::default();
    for (index, product) in products.iter().enumerate() {
        let tensor = scoring.tensor(index);
        let scores = scores.of(index);
        let probe = Probe::new(product, tensor, &samples[&index]);
        let mut levels = Vec::new();
        for (&fraction, &sparsity) in fractions.iter().zip(&options.sparsities) {
            let pruned = without_least(tensor, &scores, fraction);
            let error = probe.error(&pruned, options.seed);
            let mut measured = Measured::default();
            if options.measured.contains(&sparsity) {
                let model = replaced(model, &product.name, pruned)?;
                measured = measure(&model, [done, total])?;
                done += 1;
            }
            let Measured { output_error, metric } = measured;
            let level = Level::Sparsity(sparsity);
            levels.push(LevelSensitivity { level, error, output_error, metric });
        }
        let node = &model.graph.nodes[product.index];
        found.tensors.push(TensorSensitivity {
            name: product.name.clone(),
            node: node.label().to_string(),
            op_type: node.op_type.clone(),
            block: block_of(node.label()),
            element_count: tensor.element_count(),
            levels,
        });
    }
    Ok(found)
}

/// The part of a model that a node belongs to: its label up to the first number.
pub(super) fn block_of(label: &str) -> String {
    let parts: Vec<&str> = label.split(['/', '.']).filter(|part| !part.is_empty()).collect();
    let numbered = parts.iter().position(|part| part.ends_with(|c: char| c.is_ascii_digit()));
    let end = numbered.map_or(1, |at| at + 1).min(parts.len());
    parts[..end].join("/")
}

/// Rows of products, by their numbers, in one pass over the data.
pub(super) fn observe_rows(
    model: &Model,
    context: &Context,
    products: &[(usize, &Product)],
) -> Result<BTreeMap<usize, RowSample>, PassError> {
    let mut records: BTreeMap<String, Samples> = BTreeMap::new();
    for &(index, product) in products {
        let of_value = records.entry(product.data.clone()).or_default();
        of_value.0.push((index, RowSample::new(product)));
    }
    if !records.is_empty() {
        observe(model, &mut records, context)?;
    }
    Ok(records.into_values().flat_map(|of_value| of_value.0).collect())
}

/// Of one value, for each product that reads it.
#[derive(Default)]
struct Samples(Vec<(usize, RowSample)>);

impl crate::quantize::calibrate::Fold for Samples {
    fn fold(&mut self, tensor: &Tensor) -> bool {
        self.0.iter_mut().all(|(_, sample)| sample.fold(tensor))
    }
}

/// The tensor with that part of its weights at zero, those of lowest scores.
fn without_least(tensor: &Tensor, scores: &[f32], sparsity: Fraction) -> Tensor {
    let mut cut = Cut::of(scores, sparsity.of(scores.len()));
    let values = tensor.values::<f32>();
    let kept = values.iter().zip(scores);
    let kept: Vec<f32> = kept.map(|(&w, &score)| if cut.takes(score) { 0.0 } else { w }).collect();
    Tensor::new(tensor.shape(), &kept)
}

pub(super) fn replaced(model: &Model, name: &str, tensor: Tensor) -> Result<Model, PassError> {
    let mut model = model.clone();
    let mut plan = Plan::default();
    plan.push(Edit::SetInitializer { name: name.into(), tensor });
    apply(&mut model.graph, &plan)?;
    Ok(model)
}

/// One product with a sample of its rows.
pub(super) struct Probe<'a> {
    product: &'a Product,
    tensor: &'a Tensor,
    sample: &'a RowSample,
    /// ‖x·W‖² of each row.
    power: Vec<f64>,
}

impl<'a> Probe<'a> {
    pub(super) fn new(product: &'a Product, tensor: &'a Tensor, sample: &'a RowSample) -> Self {
        let mut probe = Self { product, tensor, sample, power: Vec::new() };
        probe.power = probe.row_squares(&tensor.values::<f32>());
        probe
    }

    /// ‖x·V‖² of each row, for weights V in the place of the tensor's.
    fn row_squares(&self, values: &[f32]) -> Vec<f64> {
        let count = self.sample.batches().len();
        let mut squares = vec![0.0_f64; count];
        for matrix in &self.product.matrices {
            let places =
                matrix.inputs.iter().flat_map(|i| matrix.outputs.iter().map(move |o| i + o));
            let v: Vec<f32> = places.map(|place| values[place]).collect();
            let rows = self.sample.rows(matrix.group);
            let (inputs, outputs) = (matrix.inputs.len(), matrix.outputs.len());
            let mut product = vec![0.0_f32; count * outputs];
            weighted_rows(&mut product, rows, &v, [count, inputs], false);
            for (square, row) in squares.iter_mut().zip(product.chunks_exact(outputs.max(1))) {
                *square += row.iter().map(|x| f64::from(x * x)).sum::<f64>();
            }
        }
        squares
    }

    /// ‖X(W − Ŵ)‖ / ‖XW‖, with its interval.
    pub(super) fn error(&self, pruned: &Tensor, seed: u64) -> Estimate {
        let batches = self.lost(pruned).into_iter().map(|(_, lost, power)| (lost, power));
        ratio(&batches.collect::<Vec<_>>(), seed)
    }

    /// ‖X(W − Ŵ)‖ / ‖XW‖ alone.
    pub(super) fn exact(&self, pruned: &Tensor) -> f64 {
        let add =
            |sum: (f64, f64), (_, lost, power): (usize, f64, f64)| (sum.0 + lost, sum.1 + power);
        let (lost, power) = self.lost(pruned).into_iter().fold((0.0, 0.0), add);
        if power > 0.0 { (lost / power).sqrt() } else { 0.0 }
    }

    /// Of each batch that rows were kept of: ‖x·(W − Ŵ)‖² and ‖x·W‖² over its rows x.
    pub(super) fn lost(&self, pruned: &Tensor) -> Vec<(usize, f64, f64)> {
        let (w, kept) = (self.tensor.values::<f32>(), pruned.values::<f32>());
        let gone: Vec<f32> = w.iter().zip(kept.iter()).map(|(w, kept)| w - kept).collect();
        let lost = self.row_squares(&gone);
        let mut batches: Vec<(usize, f64, f64)> = Vec::new();
        for ((&batch, lost), power) in self.sample.batches().iter().zip(lost).zip(&self.power) {
            match batches.last_mut().filter(|(last, ..)| *last == batch) {
                Some(sums) => *sums = (batch, sums.1 + lost, sums.2 + power),
                None => batches.push((batch, lost, *power)),
            }
        }
        batches
    }
}

/// √(Σ lost / Σ power) over examples, each with its pair of sums, and its 95 % interval from a
/// bootstrap over them; 0 where there is no power.
pub fn ratio(examples: &[(f64, f64)], seed: u64) -> Estimate {
    let root = |(lost, power): (f64, f64)| if power > 0.0 { (lost / power).sqrt() } else { 0.0 };
    let add = |sum: (f64, f64), of: &(f64, f64)| (sum.0 + of.0, sum.1 + of.1);
    let value = root(examples.iter().fold((0.0, 0.0), add));
    if examples.is_empty() {
        return Estimate { value, low: value, high: value };
    }
    let mut rng = Rng::new(&[seed, examples.len() as u64]);
    let mut draw = || {
        let drawn = (0..examples.len()).map(|_| &examples[rng.below(examples.len())]);
        root(drawn.fold((0.0, 0.0), add))
    };
    let mut draws: Vec<f64> = (0..DRAWS).map(|_| draw()).collect();
    draws.sort_by(f64::total_cmp);
    let at = |share: f64| draws[((DRAWS - 1) as f64 * share).round() as usize];
    Estimate { value, low: at(0.025).min(value), high: at(0.975).max(value) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Feeds, drawn, model, outputs};
    use super::*;

    use attar_runtime::Builtin;

    #[test]
    fn what_is_predicted_of_a_product_is_what_it_does() {
        let model = model("x: f32[n, 4]\ny = MatMul(x, w)", &[("w", vec![4, 2])]);
        let feeds = Feeds((0..20).map(|seed| drawn(seed, &[3, 4])).collect());
        let context = Context { calibration: Some(&feeds), ..Context::new(&Builtin) };
        let options = SensitivityOptions {
            importance: "l1".into(),
            sparsities: vec![0.25, 0.5, 1.0],
            measured: vec![0.5],
            seed: 1,
        };
        let wanted = outputs(&model, &feeds);
        let mut errors = Vec::new();
        let mut measure = |pruned: &Model, _: [usize; 2]| {
            let found = outputs(pruned, &feeds);
            let sums = wanted.iter().zip(&found).fold((0.0, 0.0), |(lost, power), (a, b)| {
                (lost + f64::from(a - b).powi(2), power + f64::from(*a).powi(2))
            });
            errors.push((sums.0 / sums.1).sqrt());
            Ok::<_, PassError>(Measured::default())
        };
        let found = sensitivity(&model, &context, &options, &mut measure).unwrap();
        let levels = &found.tensors[0].levels;
        assert_eq!(errors.len(), 1);
        assert!((levels[1].error.value - errors[0]).abs() < 1e-6, "{levels:?} {errors:?}");
        assert!(levels[0].error.value < levels[1].error.value);
        assert!((levels[2].error.value - 1.0).abs() < 1e-9, "nothing is left");
        assert!(levels[0].error.low < levels[0].error.value);
        assert!(levels[0].error.high > levels[0].error.value);
    }

    #[test]
    fn a_block_is_named_by_the_first_number() {
        assert_eq!(block_of("/encoder/layer.0/attention/query/MatMul"), "encoder/layer/0");
        assert_eq!(block_of("/layer1/conv/Conv"), "layer1");
        assert_eq!(block_of("/pooler/dense/Gemm"), "pooler");
    }
}
