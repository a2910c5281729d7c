//! The trainer: a model with its weights on the way, and the steps that change them.

mod run;

use std::path::PathBuf;

use attar_graph::Model;
use attar_ops::{Flow, Pool};
use attar_tensor::{DType, Tensor};

use crate::order::STEP;
use crate::{
    Batch, Loss, LossRun, Optimizer, Rng, StepContext, Tape, TapeOptions, TrainError,
    TrainerOptions, Update, build_loss, build_optimizer,
};

pub use run::Outcome;

/// Where and how often a run is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoints {
    pub folder: PathBuf,
    /// Steps after which one is written.
    pub every_steps: Option<u64>,
    /// Seconds after which one is written.
    pub every_seconds: Option<u64>,
    /// Goes on from the newest whole checkpoint of the folder, if there is one.
    pub resume: bool,
    /// What else decides the result, such as the data: a checkpoint of another is refused.
    pub fingerprint: String,
}

/// A model in training.
pub struct Trainer {
    model: Model,
    options: TrainerOptions,
    tape: Tape,
    loss: Box<dyn Loss>,
    optimizer: Box<dyn Optimizer>,
    /// In the order of [`Tape::variables`].
    variables: Vec<Tensor>,
    /// By trained initializer.
    moments: Vec<Vec<Tensor>>,
    step: u64,
    pool: Pool,
    threads: rayon::ThreadPool,
}

/// What one step found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    pub loss: f64,
    pub gradient_norm: Option<f64>,
    pub example_count: usize,
}

impl Trainer {
    /// Makes a model ready to train.
    ///
    /// # Errors
    /// Options that do not fit the model, or a model that does not train.
    pub fn new(model: &Model, mut options: TrainerOptions) -> Result<Self, TrainError> {
        if options.outputs.is_empty() {
            options.outputs = model.graph.outputs.iter().take(1).map(|o| o.name.clone()).collect();
        }
        let loss = build_loss(&options.loss)?;
        let optimizer = build_optimizer(&options.optimizer)?;
        let trained: Vec<String> = (model.graph.initializers.iter())
            .filter(|(_, stored)| stored.tensor.dtype() == DType::F32)
            .filter(|(_, stored)| stored.tensor.element_count() > 1)
            .map(|(name, _)| name.clone())
            .collect();
        let tape_options = TapeOptions {
            outputs: options.outputs.clone(),
            unfused: options.machine.unfused,
            recompute: options.machine.recompute,
        };
        let tape = Tape::new(model, &trained, &tape_options)?;
        let contents = |name: &String| {
            let tensor = model.graph.constant(name);
            tensor.map(Tensor::aligned).ok_or(TrainError::NoInitializer { name: name.clone() })
        };
        let variables = tape.variables().iter().map(contents).collect::<Result<Vec<_>, _>>()?;
        let zeros = |weight: &Tensor| {
            let names = optimizer.moments().iter();
            names.map(|_| Tensor::zeros(DType::F32, weight.shape())).collect()
        };
        let moments = variables[..tape.trained().len()].iter().map(zeros).collect();
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(options.machine.threads.get())
            .thread_name(|index| format!("attar-train-{index}"))
            .build()
            .map_err(|error| TrainError::data(error.to_string(), "ask for fewer threads"))?;
        Ok(Self {
            model: model.clone(),
            options,
            tape,
            loss,
            optimizer,
            variables,
            moments,
            step: 0,
            pool: Pool::default(),
            threads,
        })
    }

    /// The names of the initializers that change.
    pub fn trained(&self) -> &[String] {
        self.tape.trained()
    }

    /// Steps done.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// The model with its present weights.
    pub fn model(&self) -> Model {
        let mut model = self.model.clone();
        for (name, tensor) in self.tape.variables().iter().zip(&self.variables) {
            replace(&mut model, name, tensor.clone());
        }
        model
    }

    /// One step over one or more batches.
    ///
    /// # Errors
    /// A node that fails, or targets that do not fit.
    pub fn step(
        &mut self,
        batches: Vec<Batch>,
        learning_rate: f64,
    ) -> Result<StepOutcome, TrainError> {
        let Self { tape, loss, optimizer, variables, moments, pool, threads, options, .. } = self;
        let total: usize = batches.iter().map(|batch| batch.example_count).sum();
        let trained_count = tape.trained().len();
        let mut sums: Vec<Option<Flow>> = vec![None; trained_count];
        let mut mean = 0.0;
        for (index, batch) in batches.into_iter().enumerate() {
            let share = batch.example_count as f64 / total.max(1) as f64;
            let feeds = feeds_of(tape, &batch)?;
            let seed = Rng::new(&[options.batches.seed, STEP, self.step, index as u64]).next_u64();
            let measured = threads.install(|| {
                let mut recording = tape.forward(variables, feeds, StepContext { seed }, pool)?;
                let updates = std::mem::take(&mut recording.updates);
                let measured = loss.measure(&LossRun {
                    outputs: &recording.outputs,
                    targets: &batch.targets,
                    scale: share as f32,
                    pool,
                })?;
                tape.backward(variables, recording, measured.gradients, &mut sums, pool)?;
                Ok::<_, TrainError>((measured.loss, updates))
            });
            let (loss, updates) = measured?;
            mean += share * loss;
            for (variable, tensor) in updates {
                pool.recycle(std::mem::replace(&mut variables[variable], tensor));
            }
        }
        self.step += 1;
        for (index, gradient) in sums.into_iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let weight = &mut variables[index];
            let decays = options.weights.decay_vectors || weight.rank() > 1;
            let (scale, step) = (1.0, self.step);
            let update = Update { gradient: &gradient, scale, learning_rate, step, decays };
            threads.install(|| optimizer.update(weight, &mut moments[index], &update));
            match gradient {
                Flow::Dense(tensor) | Flow::Rows { rows: tensor, .. } => pool.recycle(tensor),
            }
        }
        Ok(StepOutcome { loss: mean, gradient_norm: None, example_count: total })
    }
}

/// The feeds in the order of the tape's inputs.
fn feeds_of(tape: &Tape, batch: &Batch) -> Result<Vec<Tensor>, TrainError> {
    let find = |input: &attar_graph::Value| {
        let feed = batch.feeds.iter().find(|(name, _)| *name == input.name);
        feed.map(|(_, tensor)| tensor.clone()).ok_or_else(|| {
            let names: Vec<&str> = batch.feeds.iter().map(|(name, _)| name.as_str()).collect();
            TrainError::Feed { input: input.name.clone(), found: names.join(", ") }
        })
    };
    tape.inputs().iter().map(find).collect()
}

/// Puts new contents in place of a constant's, wherever the model holds it.
fn replace(model: &mut Model, name: &str, tensor: Tensor) {
    let graph = &mut model.graph;
    if let Some(stored) = graph.initializers.get_mut(name) {
        *stored = tensor.into();
        return;
    }
    let is_it = |node: &&mut attar_graph::Node| node.outputs.first().is_some_and(|o| o == name);
    if let Some(node) = graph.nodes.iter_mut().filter(|n| n.constant().is_some()).find(is_it) {
        node.set_constant(tensor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Choice, Schedule, Silent, Source, Targets};
    use attar_graph::testing::graph_from_text;

    /// Points of two classes, split by a line.
    struct Points;

    impl Source for Points {
        fn len(&self) -> usize {
            50
        }

        fn batch(&self, indices: &[usize], _: &mut Rng) -> Result<Batch, TrainError> {
            let mut rows = Vec::new();
            let mut labels = Vec::new();
            for &index in indices {
                let (a, b) = (index as f32 * 0.37 % 2.0 - 1.0, index as f32 * 0.73 % 2.0 - 1.0);
                rows.extend([a, b]);
                labels.push(u32::from(a + 2.0 * b > 0.3));
            }
            let feeds = vec![("x".into(), Tensor::new(&[indices.len(), 2], &rows))];
            let targets = Targets::Classes(labels);
            Ok(Batch { feeds, targets, example_count: indices.len() })
        }
    }

    fn model() -> Model {
        let text = "x: f32[n, 2]
            w = [0.1 -0.1; 0.2 0.1]
            b = [0 0]
            h = MatMul(x, w)
            y = Add(h, b)";
        let opsets = [(String::new(), 17)].into_iter().collect();
        Model { ir_version: 8, opsets, graph: graph_from_text(text), ..Model::default() }
    }

    #[test]
    fn a_line_between_two_classes_is_found() {
        let optimizer = Choice::new("sgd").with("momentum", 0.9);
        let mut options =
            TrainerOptions::new(Choice::new("cross-entropy"), optimizer, Schedule::constant(0.5));
        options.length.epochs = 40;
        let mut trainer = Trainer::new(&model(), options).unwrap();
        assert_eq!(trainer.trained(), ["w", "b"]);
        let outcome = trainer.run(&Points, None, &mut Silent, None).unwrap();
        assert_eq!(outcome.step, 80);
        let batch = Points.batch(&(0..50).collect::<Vec<_>>(), &mut Rng::new(&[])).unwrap();
        assert!(trainer.step(vec![batch], 0.0).unwrap().loss < 0.1);
    }
}
