//! What a step of training is fed with, and where it comes from.

use attar_tensor::Tensor;

use crate::{Rng, TrainError};

/// Examples that go through the model together.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Tensors of the model's inputs, by name, in any order.
    pub feeds: Vec<(String, Tensor)>,
    pub targets: Targets,
    pub example_count: usize,
}

/// What a loss compares the model's outputs with.
#[derive(Clone, Debug)]
pub enum Targets {
    /// The outputs alone tell: pairs within a batch.
    None,
    /// A class per row of the output; [`IGNORED_CLASS`] for a row that does not count.
    Classes(Vec<u32>),
    /// Probabilities, f32 [rows, classes].
    Soft(Tensor),
    /// Numbers, f32: of the output's shape, or one per pair.
    Values(Tensor),
    /// A teacher's outputs, f32, in the order of [`TrainerOptions::outputs`].
    ///
    /// [`TrainerOptions::outputs`]: crate::TrainerOptions::outputs
    Outputs(Vec<Tensor>),
    /// Labels, and a teacher's outputs beside them.
    Taught { labels: Box<Targets>, outputs: Vec<Tensor> },
    /// What a loss compares its outputs with, and what a teacher computes on the way: one f32
    /// tensor for each of the last outputs.
    Features { targets: Box<Targets>, features: Vec<Tensor> },
}

/// The class of a row that does not count: −100, as an unsigned number.
pub const IGNORED_CLASS: u32 = (-100_i32).cast_unsigned();

impl Targets {
    /// What they are, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "no targets",
            Self::Classes(_) => "classes",
            Self::Soft(_) => "probabilities of classes",
            Self::Values(_) => "values",
            Self::Outputs(_) => "a teacher's outputs",
            Self::Taught { .. } => "labels with a teacher's outputs",
            Self::Features { targets, .. } => targets.kind(),
        }
    }
}

/// A data set that makes batches. Which examples make a batch, and in what order, is decided by the
/// [`Trainer`](crate::Trainer).
pub trait Source: Sync {
    /// Examples in all.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How long each example is, where batches are best made of equal lengths.
    fn lengths(&self) -> Option<&[usize]> {
        None
    }

    /// A batch of the examples named. What is random in it is drawn from `draw` alone, which starts
    /// anew for every batch of every epoch: a resumed run repeats it bit for bit. Called on another
    /// thread while a step computes.
    ///
    /// # Errors
    /// Examples that cannot be read: [`TrainError::data`].
    fn batch(&self, indices: &[usize], draw: &mut Rng) -> Result<Batch, TrainError>;
}
