//! The trainer: a model with its weights on the way.

mod checkpoint;
mod diagnosis;
mod producer;
mod progress;
mod pruning;
#[cfg(test)]
mod pruning_tests;
mod run;
mod scales;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use attar_graph::{Model, Node};
use attar_ops::Pool;
use attar_ops::optimize::Moments;
use attar_tensor::{DType, Tensor};

use crate::selection::trained_initializers;
use crate::zeros::HeldZeros;
use crate::{
    Loss, Optimizer, Tape, TapeOptions, TrainError, TrainerOptions, build_loss, build_optimizer,
    with_features,
};
use progress::Progress;
use pruning::Pruning;
use scales::Scales;

pub use checkpoint::Checkpoints;
pub use run::Outcome;
pub use step::StepOutcome;

/// A model in training.
pub struct Trainer {
    /// Its variables are empty: see `variables`.
    model: Model,
    options: TrainerOptions,
    tape: Tape,
    loss: Box<dyn Loss>,
    optimizer: Box<dyn Optimizer>,
    /// In the order of [`Tape::variables`].
    variables: Vec<Tensor>,
    /// Moving average of the variables.
    average: Option<Vec<Tensor>>,
    /// The variables, or their average, that measured best.
    best: Option<Vec<Tensor>>,
    /// By trained initializer.
    moments: Vec<Moments>,
    /// By trained initializer.
    held: Vec<Option<HeldZeros>>,
    pruning: Option<Pruning>,
    scales: Option<Scales>,
    progress: Progress,
    pool: Pool,
    threads: Arc<rayon::ThreadPool>,
}

impl Trainer {
    /// Makes a model ready to train.
    ///
    /// # Errors
    /// Options that do not fit the model, or a model that does not train: on a path from a trained
    /// weight to an output an operator without gradient, by its node.
    pub fn new(model: &Model, mut options: TrainerOptions) -> Result<Self, TrainError> {
        if options.outputs.is_empty() {
            options.outputs = model.graph.outputs.iter().take(1).map(|o| o.name.clone()).collect();
        }
        let mut loss = build_loss(&options.loss)?;
        if let Some(weight) = options.feature_weight {
            loss = with_features(loss, weight);
        }
        let optimizer = build_optimizer(&options.optimizer)?;
        let trained = trained_initializers(model, &options.outputs, &options.weights)?;
        let tape_options = TapeOptions {
            outputs: options.outputs.clone(),
            unfused: options.machine.unfused,
            recompute: options.machine.recompute,
        };
        let tape = Tape::new(model, &trained, &tape_options)?;
        let contents = |name: &String| {
            let tensor = model.graph.constant(name);
            tensor.map(single).ok_or(TrainError::NoInitializer { name: name.clone() })
        };
        let variables = tape.variables().iter().map(contents).collect::<Result<Vec<_>, _>>()?;
        let held = |weight| options.weights.hold_zeros.then(|| HeldZeros::of(weight)).flatten();
        let weights = &variables[..tape.trained().len()];
        let mut held: Vec<Option<HeldZeros>> = weights.iter().map(held).collect();
        let pruning = options.prune.as_ref();
        let pruning =
            pruning.map(|prune| Pruning::new(prune, model, tape.trained(), weights, &mut held));
        let pruning = pruning.transpose()?;
        let scales = options.weights.scales.as_ref();
        let scales = scales.map(|scales| Scales::new(scales, tape.trained()));
        let mut model = model.clone();
        // They stand in `variables` from here on; held here too, the first step would copy them.
        for name in tape.variables() {
            let dtype = model.graph.constant(name).map_or(DType::F32, Tensor::dtype);
            replace(&mut model, name, Tensor::zeros(dtype, &[0]));
        }
        let weights = &variables[..tape.trained().len()];
        let zeros = |weight: &Tensor| Moments::zeros(weight.shape(), optimizer.moments().len());
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(options.machine.threads.get())
            .thread_name(|index| format!("attar-train-{index}"))
            .build()
            .map_err(|error| TrainError::data(error.to_string(), "ask for fewer threads"))?;
        Ok(Self {
            model,
            moments: weights.iter().map(zeros).collect(),
            held,
            pruning,
            scales,
            average: options.weights.average.map(|_| variables.clone()),
            best: None,
            progress: Progress::default(),
            pool: Pool::default(),
            threads: Arc::new(threads),
            options,
            tape,
            loss,
            optimizer,
            variables,
        })
    }

    pub fn options(&self) -> &TrainerOptions {
        &self.options
    }

    /// The names of the initializers that change by gradients.
    pub fn trained(&self) -> &[String] {
        self.tape.trained()
    }

    /// Numbers in the trained initializers.
    pub fn trained_count(&self) -> usize {
        self.variables[..self.trained().len()].iter().map(Tensor::element_count).sum()
    }

    /// Steps done.
    pub fn step_count(&self) -> u64 {
        self.progress.step
    }

    /// The result: the model that measured best, or, if nothing was measured, the one with the
    /// average of the weights, where it is kept, or with the present weights.
    pub fn model(&self) -> Model {
        self.model_with(self.best.as_ref().unwrap_or_else(|| self.measured()))
    }

    /// The model with its present weights.
    pub fn present_model(&self) -> Model {
        self.model_with(&self.variables)
    }

    /// What is measured: the average, where it is kept.
    fn measured(&self) -> &Vec<Tensor> {
        self.average.as_ref().unwrap_or(&self.variables)
    }

    fn model_with(&self, variables: &[Tensor]) -> Model {
        let mut model = self.model.clone();
        for (name, tensor) in self.tape.variables().iter().zip(variables) {
            let dtype = self.model.graph.constant(name).map_or(DType::F32, Tensor::dtype);
            let stored = if dtype == DType::F32 {
                tensor.clone()
            } else {
                tensor.converted(dtype).expect("floats convert to half types")
            };
            replace(&mut model, name, stored);
        }
        model
    }
}

/// A weight as it is trained: small steps would be lost on one of a half type.
fn single(weight: &Tensor) -> Tensor {
    match weight.dtype() {
        DType::F32 => weight.aligned(),
        _ => weight.converted(DType::F32).expect("weights are floats"),
    }
}

/// Puts new contents in place of a constant's.
fn replace(model: &mut Model, name: &str, tensor: Tensor) {
    let graph = &mut model.graph;
    if let Some(stored) = graph.initializers.get_mut(name) {
        *stored = tensor.into();
        return;
    }
    let is_it = |node: &&mut Node| node.outputs.first().is_some_and(|output| output == name);
    if let Some(node) = graph.nodes.iter_mut().find(is_it) {
        node.set_constant(tensor);
    }
}
