//! Setting the weights of lowest scores to zero, in any scope and pattern.

use attar_graph::{Edit, Model, Plan};
use attar_tensor::Tensor;
use serde::Deserialize;

use super::pattern::{for_each_block, mark_groups};
use super::{Cut, Pattern, matrices, prunable};
use crate::importance::{Importance, Scores, Scoring};
use crate::layout::Matrix;
use crate::sensitivity::Allotment;
use crate::{Context, Fraction, PassError};

/// Which weights compete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    #[default]
    Tensor,
    /// The weights of one output.
    Output,
    Global,
    /// All, each tensor's scores divided by their mean.
    Normalized,
}

/// What is removed.
pub(crate) enum Amount<'a> {
    Sparsity(Fraction),
    /// Everything of at most this score.
    UpTo(f32),
    /// A sparsity for each tensor.
    Allotted(&'a Allotment),
}

pub(crate) struct Lowest<'a> {
    pub(crate) amount: Amount<'a>,
    pub(crate) importance: Importance,
    pub(crate) scope: Scope,
    pub(crate) pattern: Pattern,
    pub(crate) seed: u64,
}

/// One tensor on the way.
struct Weight<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    /// Empty for a pattern of elements over a whole tensor, which needs none.
    matrices: Vec<Matrix>,
}

impl Lowest<'_> {
    /// The plan that sets them to zero, with how many there are.
    ///
    /// # Errors
    /// Weights that are not finite, or an importance that cannot be computed.
    pub(crate) fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let mut plan = Plan::default();
        let names = prunable(model, context)?;
        let needs_matrices = self.pattern != Pattern::Element || self.scope == Scope::Output;
        let (mut kept, mut left) = (Vec::new(), Vec::new());
        for name in names {
            let found =
                if needs_matrices { matrices(&model.graph, &name) } else { Some(Vec::new()) };
            match found.filter(|found| self.fits(found)) {
                Some(matrices) => kept.push((name, matrices)),
                None => left.push(name),
            }
        }
        let (names, matrices): (Vec<String>, Vec<Vec<Matrix>>) = kept.into_iter().unzip();
        let scoring = Scoring { model, names: &names, context, seed: self.seed };
        let scores = self.importance.scores(&scoring)?;
        let mut weights = Vec::new();
        for (index, matrices) in matrices.into_iter().enumerate() {
            weights.push(Weight { name: &names[index], tensor: scoring.tensor(index), matrices });
        }
        let mut shared = self.shared_cut(&weights, scores.as_ref());
        let (mut zeros, mut count) = (0, 0);
        for (index, weight) in weights.iter().enumerate() {
            let marks = self.marks(index, weight, scores.as_ref(), shared.as_mut());
            let mut values = weight.tensor.values::<f32>().into_owned();
            values.iter_mut().zip(&marks).filter(|(_, mark)| **mark).for_each(|(w, _)| *w = 0.0);
            zeros += values.iter().filter(|&&w| w == 0.0).count();
            count += values.len();
            if values[..] != weight.tensor.values::<f32>()[..] {
                let tensor = Tensor::new(weight.tensor.shape(), &values);
                plan.push(Edit::SetInitializer { name: weight.name.into(), tensor });
            }
        }
        if !plan.is_empty() {
            let share = 100.0 * zeros as f64 / count as f64;
            let tensors = weights.len();
            plan.remark(format!(
                "{zeros} of {count} weights are zero ({share:.1} %), in {tensors} tensors"
            ));
            plan.remark(
                "zeros are stored like other weights: the file stays as large and as fast until \
                 it is packed or structures are removed",
            );
        }
        for name in left {
            plan.remark(format!("`{name}` is left as it is: {} does not fit it", self.pattern));
        }
        Ok(plan)
    }

    /// Whether N:M finds a whole group in it.
    fn fits(&self, matrices: &[Matrix]) -> bool {
        match self.pattern {
            Pattern::Kept { of, .. } => matrices.iter().any(|matrix| matrix.run >= of),
            _ => true,
        }
    }

    /// The cut through all tensors together.
    fn shared_cut(&self, weights: &[Weight], scores: &dyn Scores) -> Option<Cut> {
        let sparsity = match &self.amount {
            Amount::UpTo(threshold) => return Some(Cut::up_to(*threshold)),
            Amount::Sparsity(sparsity)
                if matches!(self.scope, Scope::Global | Scope::Normalized) =>
            {
                *sparsity
            }
            _ => return None,
        };
        if self.pattern.sparsity().is_some() {
            return None;
        }
        let mut count = 0;
        for weight in weights {
            self.for_each_unit(weight, &mut |_| count += 1);
        }
        let each = |show: &mut dyn FnMut(&[f32])| {
            for (index, weight) in weights.iter().enumerate() {
                show(&self.unit_scores(index, weight, scores));
            }
        };
        Some(Cut::lowest(sparsity.of(count), each))
    }

    /// Which weights of a tensor go.
    fn marks(
        &self,
        index: usize,
        weight: &Weight,
        scores: &dyn Scores,
        shared: Option<&mut Cut>,
    ) -> Vec<bool> {
        let mut marks = vec![false; weight.tensor.element_count()];
        if let Pattern::Kept { kept, of } = self.pattern {
            mark_groups(&weight.matrices, [kept, of], &scores.of(index), &mut marks);
            return marks;
        }
        let units = self.unit_scores(index, weight, scores);
        let sparsity = match &self.amount {
            Amount::Sparsity(sparsity) => *sparsity,
            Amount::Allotted(allotment) => allotment.of(weight.name),
            Amount::UpTo(_) => Fraction::NOTHING,
        };
        if self.scope == Scope::Output && shared.is_none() {
            mark_outputs(&weight.matrices, sparsity, &units, &mut marks);
            return marks;
        }
        let mut own = None;
        let cut = match shared {
            Some(shared) => shared,
            None => own.insert(Cut::of(&units, sparsity.of(units.len()))),
        };
        let mut units = units.into_iter();
        self.for_each_unit(weight, &mut |places| {
            let is_taken = units.next().is_some_and(|score| cut.takes(score));
            places.iter().for_each(|&place| marks[place] = is_taken);
        });
        marks
    }

    /// What is removed together: elements, or blocks.
    fn for_each_unit(&self, weight: &Weight, visit: &mut dyn FnMut(&[usize])) {
        match self.pattern {
            Pattern::Block { outputs, inputs } => {
                for_each_block(&weight.matrices, [outputs, inputs], visit);
            }
            _ => (0..weight.tensor.element_count()).for_each(|place| visit(&[place])),
        }
    }

    /// A score per unit: the mean of its weights'.
    fn unit_scores(&self, index: usize, weight: &Weight, scores: &dyn Scores) -> Vec<f32> {
        let mut scores = scores.of(index);
        if self.scope == Scope::Normalized {
            let sum: f64 = scores.iter().map(|&score| f64::from(score)).sum();
            let mean = sum / scores.len() as f64;
            if mean > 0.0 {
                scores.iter_mut().for_each(|score| *score = (f64::from(*score) / mean) as f32);
            }
        }
        if !matches!(self.pattern, Pattern::Block { .. }) {
            return scores;
        }
        let mut means = Vec::new();
        self.for_each_unit(weight, &mut |places| {
            let sum: f64 = places.iter().map(|&place| f64::from(scores[place])).sum();
            means.push((sum / places.len() as f64) as f32);
        });
        means
    }
}

/// Marks that part of the weights of each output.
fn mark_outputs(matrices: &[Matrix], sparsity: Fraction, scores: &[f32], marks: &mut [bool]) {
    for matrix in matrices {
        for output in &matrix.outputs {
            let of_output: Vec<f32> =
                matrix.inputs.iter().map(|input| scores[input + output]).collect();
            let mut cut = Cut::of(&of_output, sparsity.of(of_output.len()));
            for (input, score) in matrix.inputs.iter().zip(of_output) {
                marks[input + output] = cut.takes(score);
            }
        }
    }
}
