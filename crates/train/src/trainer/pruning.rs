//! Gradual pruning: what is remembered between steps, and how masks change.

use attar_graph::{Model, NamePatterns};
use attar_ops::Flow;
use attar_tensor::{DType, Tensor};

use super::Trainer;
use crate::gradual::{Due, Kind};
use crate::zeros::HeldZeros;
use crate::{PruneOptions, PruneScope, Rng, TrainError};

/// The state of gradual pruning beside the masks, which are those of the trainer.
pub(super) struct Pruning {
    options: PruneOptions,
    kind: Kind,
    /// Indices of the trained initializers that are pruned.
    pub(super) tensors: Vec<usize>,
    /// What the importance has gathered, by these; none where it needs nothing.
    pub(super) gathered: Vec<Tensor>,
    /// Sparsity of these before the run.
    sparsity_before: f64,
    /// What the next step has to do.
    due: Option<Due>,
}

/// How much of a gathered importance a step keeps, where it is an average.
const KEPT: f32 = 0.95;

/// Inputs in which products have their weights.
const PLACES: &[(&str, &[usize])] = &[
    ("Conv", &[1]),
    ("ConvTranspose", &[1]),
    ("GRU", &[1, 2]),
    ("Gemm", &[1]),
    ("LSTM", &[1, 2]),
    ("MatMul", &[0, 1]),
    ("RNN", &[1, 2]),
];

/// A weight that may go.
#[derive(Clone, Copy)]
struct Candidate {
    score: f32,
    tensor: usize,
    place: usize,
}

impl Candidate {
    /// By score, and of ties by place.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        let places = (self.tensor, self.place).cmp(&(other.tensor, other.place));
        self.score.total_cmp(&other.score).then(places)
    }
}

impl Pruning {
    /// # Errors
    /// Options out of range, a pattern that fits nothing, or no weight to prune.
    pub(super) fn new(
        options: &PruneOptions,
        model: &Model,
        trained: &[String],
        weights: &[Tensor],
        held: &mut [Option<HeldZeros>],
    ) -> Result<Self, TrainError> {
        let kind = options.kind()?;
        let exclude = NamePatterns::new(options.exclude.clone());
        let names: Vec<&str> = trained.iter().map(String::as_str).collect();
        if let Some(pattern) = exclude.unmatched(&names).first() {
            return Err(TrainError::Unmatched { pattern: (*pattern).into() });
        }
        let is_weight = |name: &str| {
            model.graph.nodes.iter().any(|node| {
                let places = PLACES.iter().find(|(op_type, _)| node.is(op_type));
                places.is_some_and(|(_, places)| {
                    places.iter().any(|&at| node.input(at) == Some(name))
                })
            })
        };
        let is_pruned = |index: &usize| {
            let (name, weight) = (&trained[*index], &weights[*index]);
            weight.rank() >= 2 && is_weight(name) && !exclude.matches(name)
        };
        let tensors: Vec<usize> = (0..trained.len()).filter(is_pruned).collect();
        if tensors.is_empty() {
            return Err(TrainError::data(
                "no trained weight of a product is left to prune",
                "exclude or freeze fewer weights",
            ));
        }
        let (mut zeros, mut count) = (0, 0);
        for &index in &tensors {
            let known = HeldZeros::of(&weights[index]);
            let mask = known.unwrap_or_else(|| HeldZeros::none(weights[index].element_count()));
            zeros += mask.count();
            count += weights[index].element_count();
            held[index] = Some(mask);
        }
        let gathers = matches!(kind, Kind::Taylor | Kind::Movement);
        let gathered = tensors.iter().filter(|_| gathers);
        let gathered = gathered.map(|&index| Tensor::zeros(DType::F32, weights[index].shape()));
        Ok(Self {
            options: options.clone(),
            kind,
            gathered: gathered.collect(),
            tensors,
            sparsity_before: zeros as f64 / count.max(1) as f64,
            due: None,
        })
    }

    /// Adds a step's gradients to what is gathered.
    fn gather(&mut self, variables: &[Tensor], gradients: &[Option<Flow>]) {
        for (gathered, &index) in self.gathered.iter_mut().zip(&self.tensors) {
            let Some(Flow::Dense(gradient)) = &gradients[index] else { continue };
            let (w, g) = (variables[index].slice::<f32>(), gradient.slice::<f32>());
            let sums = gathered.slice_mut::<f32>().iter_mut().zip(w.iter().zip(g));
            match self.kind {
                Kind::Movement => sums.for_each(|(sum, (w, g))| *sum -= w * g),
                _ => sums.for_each(|(sum, (w, g))| {
                    *sum = KEPT * *sum + (1.0 - KEPT) * (w * g).abs();
                }),
            }
        }
    }

    /// The scores of the `at`-th tensor.
    fn scores(&self, at: usize, weight: &Tensor, seed: u64) -> Vec<f32> {
        let values = weight.slice::<f32>();
        match self.kind {
            Kind::Absolute => values.iter().map(|w| w.abs()).collect(),
            Kind::Relative => {
                let sum: f64 = values.iter().map(|w| f64::from(w.abs())).sum();
                values
                    .iter()
                    .map(|w| (f64::from(w.abs()) / sum.max(f64::MIN_POSITIVE)) as f32)
                    .collect()
            }
            Kind::Taylor | Kind::Movement => self.gathered[at].slice::<f32>().to_vec(),
            Kind::Random => {
                let mut rng = Rng::new(&[seed, RANDOM, at as u64]);
                values.iter().map(|_| rng.uniform() as f32).collect()
            }
        }
    }
}

/// What draws of random importances are told apart by.
const RANDOM: u64 = 0x7072_756E;

impl Trainer {
    /// Notes what the next step has to prune, in a run of `step_count` steps.
    pub(super) fn note_pruning(&mut self, step_count: u64) {
        let step = self.progress.step;
        if let Some(pruning) = &mut self.pruning {
            pruning.due = pruning.options.due(step, step_count, pruning.sparsity_before);
        }
    }

    /// Whether masks will still change.
    pub(super) fn is_pruning(&self, step_count: u64) -> bool {
        let end = |pruning: &Pruning| pruning.options.bounds(step_count).1;
        self.pruning.as_ref().is_some_and(|pruning| self.progress.step <= end(pruning))
    }

    /// The steps that a run must have for its pruning to end, where a count was given.
    ///
    /// # Errors
    /// A run that ends before.
    pub(super) fn check_pruning(&self, step_count: u64) -> Result<(), TrainError> {
        let Some(crate::Span::Steps(end)) =
            self.pruning.as_ref().map(|pruning| pruning.options.end)
        else {
            return Ok(());
        };
        if end <= step_count {
            return Ok(());
        }
        Err(TrainError::data(
            format!("pruning ends at step {end}, and the run at step {step_count}"),
            "end pruning earlier, or train longer",
        ))
    }

    /// How many of the weights that are pruned are zero, and how many there are.
    pub fn pruned_counts(&self) -> Option<[usize; 2]> {
        let pruning = self.pruning.as_ref()?;
        let count = |index: &usize| {
            let zeros = self.held[*index].as_ref().map_or(0, HeldZeros::count);
            [zeros, self.variables[*index].element_count()]
        };
        let counts = pruning.tensors.iter().map(count);
        Some(counts.fold([0, 0], |sum, of| [sum[0] + of[0], sum[1] + of[1]]))
    }

    /// Gathers importance, and changes masks where that is due: what goes becomes zero, with its
    /// moments and its average, and what comes back begins at zero.
    pub(super) fn prune(&mut self, gradients: &mut [Option<Flow>]) {
        let Some(mut pruning) = self.pruning.take() else { return };
        for &index in &pruning.tensors {
            if let Some(flow) = gradients[index].take() {
                gradients[index] = Some(flow.into_dense(&self.pool).into());
            }
        }
        pruning.gather(&self.variables, gradients);
        if let Some(due) = pruning.due.take() {
            let all: Vec<usize> = (0..pruning.tensors.len()).collect();
            match pruning.options.scope {
                PruneScope::Tensor => {
                    all.chunks(1)
                        .for_each(|one| self.change_masks(&mut pruning, one, due, gradients));
                }
                PruneScope::Global => self.change_masks(&mut pruning, &all, due, gradients),
            }
            for &index in &pruning.tensors {
                self.clear_held(index);
            }
        }
        self.pruning = Some(pruning);
    }

    /// Changes the masks of the tensors `group`, whose weights compete.
    fn change_masks(
        &mut self,
        pruning: &mut Pruning,
        group: &[usize],
        due: Due,
        gradients: &[Option<Flow>],
    ) {
        let (mut active, mut gone) = (Vec::new(), Vec::new());
        for &at in group {
            let index = pruning.tensors[at];
            let Some(mask) = &self.held[index] else { continue };
            let scores = pruning.scores(at, &self.variables[index], self.options.batches.seed);
            let gradient = match &gradients[index] {
                Some(Flow::Dense(gradient)) => Some(gradient.slice::<f32>()),
                _ => None,
            };
            for (place, score) in scores.into_iter().enumerate() {
                if mask.is_held(place) {
                    // The greatest gradient comes first.
                    let score = gradient.map_or(0.0, |g| -g[place].abs());
                    gone.push(Candidate { score, tensor: at, place });
                } else {
                    active.push(Candidate { score, tensor: at, place });
                }
            }
        }
        let total = active.len() + gone.len();
        let wanted = (due.sparsity * total as f64).floor() as usize;
        let grown = ((due.regrow * active.len() as f64).floor() as usize).min(gone.len());
        let dropped = (wanted + grown).saturating_sub(gone.len()).min(active.len());
        let grown = (gone.len() + dropped).saturating_sub(wanted).min(grown);
        for candidate in lowest(&mut active, dropped) {
            self.hold(pruning, candidate, true);
        }
        for candidate in lowest(&mut gone, grown) {
            self.hold(pruning, candidate, false);
        }
    }

    fn hold(&mut self, pruning: &mut Pruning, candidate: &Candidate, is_held: bool) {
        let index = pruning.tensors[candidate.tensor];
        if let Some(mask) = &mut self.held[index] {
            mask.set(candidate.place, is_held);
        }
        // What comes back has to show anew what it is worth.
        if let Some(gathered) = pruning.gathered.get_mut(candidate.tensor).filter(|_| !is_held) {
            gathered.slice_mut::<f32>()[candidate.place] = 0.0;
        }
    }

    /// Sets to zero what is held of a weight, its moments and its averages.
    fn clear_held(&mut self, index: usize) {
        let Some(mask) = &self.held[index] else { return };
        mask.clear(&mut self.variables[index]);
        self.moments[index].tensors.iter_mut().for_each(|moment| mask.clear(moment));
        if let Some(average) = &mut self.average {
            mask.clear(&mut average[index]);
        }
    }
}

/// The `count` candidates that come first.
fn lowest(candidates: &mut [Candidate], count: usize) -> &[Candidate] {
    if count == 0 {
        return &[];
    }
    let (_, _, _) = candidates.select_nth_unstable_by(count - 1, Candidate::order);
    &candidates[..count]
}
