//! What a pass is, and the table of all of them.

use attar_graph::{GraphError, Model, Plan, Value};
use attar_ops::OpError;
use attar_ops::opset::OpsetError;
use attar_runtime::{Runtime, RuntimeError};
use attar_tensor::Tensor;
use attar_train::TrainError;
use serde::de::DeserializeOwned;

use crate::{Exclude, QuantizationRecord, cleanup, fuse, half, prune, quantize, unroll};

/// A step of compression. Its fields are its settings, read from a recipe.
pub trait Pass {
    /// What it would change, with remarks on what it would not.
    ///
    /// # Errors
    /// A model or data that the pass cannot work with.
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError>;

    /// As [`plan`](Self::plan), with what a quantizing pass can tell of ranges and errors.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    fn plan_recorded(
        &self,
        model: &Model,
        context: &Context,
    ) -> Result<(Plan, Option<QuantizationRecord>), PassError> {
        Ok((self.plan(model, context)?, None))
    }

    /// The operator set that its edits need; an older model is converted first.
    fn opset_min(&self) -> i64 {
        1
    }

    /// What must be done to a model before [`plan`](Self::plan) looks at it.
    ///
    /// # Errors
    /// Settings that do not fit the model.
    fn prepare(&self, _: &Model) -> Result<Plan, PassError> {
        Ok(Plan::default())
    }

    /// Whether to plan again on the result, until nothing is left to do.
    fn repeats(&self) -> bool {
        false
    }
}

/// Feeds from the user's data, one batch in memory at a time.
pub trait Calibration {
    /// Calls `visit` with every batch: one tensor for each of `inputs`.
    ///
    /// # Errors
    /// Data that cannot be read or does not fit the inputs, or what `visit` returns.
    fn for_each_batch(
        &self,
        inputs: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError>;

    /// Calls `visit` with the same, where that is faster several batches as one, and their numbers as
    /// [`for_each_batch`](Self::for_each_batch) counts them: the first axis of a tensor holds one
    /// after the other, nothing is padded. The order may be another.
    ///
    /// # Errors
    /// As [`for_each_batch`](Self::for_each_batch).
    fn for_each_group(
        &self,
        inputs: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)], &[usize]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        let mut number = 0;
        self.for_each_batch(inputs, &mut |feeds| {
            visit(feeds, &[number])?;
            number += 1;
            Ok(())
        })
    }

    /// The class of each example, batch by batch as [`for_each_batch`](Self::for_each_batch) shows
    /// them; `None` where the data has no labels.
    ///
    /// # Errors
    /// Labels that do not fit the model.
    fn classes(&self) -> Result<Option<Vec<Vec<u32>>>, PassError> {
        Ok(None)
    }
}

/// What a pass may use besides the model.
pub struct Context<'a> {
    pub calibration: Option<&'a dyn Calibration>,
    /// Runs the model over calibration data.
    pub runtime: &'a dyn Runtime,
    pub threads: std::num::NonZeroUsize,
    pub exclude: Exclude,
    /// Where models can be timed on the runtime that they are made for.
    pub timing: Option<&'a dyn Timing>,
}

impl<'a> Context<'a> {
    /// One thread, no data, nothing left out.
    pub fn new(runtime: &'a dyn Runtime) -> Self {
        Self {
            calibration: None,
            runtime,
            threads: std::num::NonZeroUsize::MIN,
            exclude: Exclude::default(),
            timing: None,
        }
    }
}

/// Times models against each other.
pub trait Timing {
    /// The time of `b` over that of `a`, run in turn.
    ///
    /// # Errors
    /// A model that the runtime does not take.
    fn ratio(&self, a: &Model, b: &Model) -> Result<f64, PassError>;
}

/// One setting of a pass, as the reference shows it.
#[derive(Clone, Copy, Debug)]
pub struct OptionEntry {
    pub key: &'static str,
    /// The default as TOML, or empty where the key must be given.
    pub default: &'static str,
    pub help: &'static str,
}

/// A pass in the table.
pub struct PassEntry {
    pub name: &'static str,
    pub summary: &'static str,
    pub options: &'static [OptionEntry],
    build: fn(toml::Table) -> Result<Box<dyn Pass>, toml::de::Error>,
}

impl PassEntry {
    const fn of<P: Pass + DeserializeOwned + 'static>(
        name: &'static str,
        summary: &'static str,
        options: &'static [OptionEntry],
    ) -> Self {
        Self { name, summary, options, build: |table| Ok(Box::new(table.try_into::<P>()?)) }
    }

    /// The pass with settings read from a recipe's table.
    ///
    /// # Errors
    /// [`PassError::Settings`] naming the key that is missing, unknown or out of range.
    pub fn build(&self, settings: toml::Table) -> Result<Box<dyn Pass>, PassError> {
        (self.build)(settings).map_err(|error| PassError::Settings {
            pass: self.name,
            message: error.message().to_string(),
            known: self.options.iter().map(|option| option.key).collect::<Vec<_>>().join(", "),
        })
    }
}

/// Every pass.
pub const PASSES: &[PassEntry] = &[
    PassEntry::of::<cleanup::Cleanup>(
        "cleanup",
        "fold constants; remove identities, dead nodes, branches never taken and duplicate initializers",
        cleanup::OPTIONS,
    ),
    PassEntry::of::<fuse::BatchNormFuse>(
        "fuse.batch-norm",
        "fold each BatchNormalization into the convolution before it",
        &[],
    ),
    PassEntry::of::<unroll::Unroll>(
        "unroll",
        "write LSTM, GRU and RNN layers as products and functions, step by step",
        unroll::OPTIONS,
    ),
    PassEntry::of::<quantize::Equalize>(
        "equalize",
        "give channels between two convolutions equal ranges of weights; what is computed stays",
        &[],
    ),
    PassEntry::of::<prune::MagnitudePrune>(
        "prune.magnitude",
        "set the weights of least magnitude to zero (unstructured)",
        prune::MAGNITUDE_OPTIONS,
    ),
    PassEntry::of::<prune::ChannelPrune>(
        "prune.channels",
        "cut channels, neurons, attention heads and hidden units out of the graph (structured)",
        prune::CHANNEL_OPTIONS,
    ),
    PassEntry::of::<prune::BlockPrune>(
        "prune.blocks",
        "take whole residual blocks out: attention or feed-forward parts, blocks of a ResNet",
        prune::BLOCK_OPTIONS,
    ),
    PassEntry::of::<prune::OutputPrune>(
        "prune.output",
        "make the vector that a model gives shorter: projected, or its first dimensions",
        prune::OUTPUT_OPTIONS,
    ),
    PassEntry::of::<prune::UnstructuredPrune>(
        "prune.unstructured",
        "set the weights of least importance to zero: single ones, N of every M, or blocks",
        prune::UNSTRUCTURED_OPTIONS,
    ),
    PassEntry::of::<prune::ThresholdPrune>(
        "prune.threshold",
        "set every weight to zero whose importance is at most alpha",
        prune::THRESHOLD_OPTIONS,
    ),
    PassEntry::of::<prune::ObsPrune>(
        "prune.obs",
        "set weights to zero and the others so that each product changes least (SparseGPT)",
        prune::OBS_OPTIONS,
    ),
    PassEntry::of::<quantize::DynamicQuantize>(
        "quantize.dynamic",
        "8-bit weights; activations quantized while running, by the range of each batch",
        quantize::DYNAMIC_OPTIONS,
    ),
    PassEntry::of::<quantize::StaticQuantize>(
        "quantize.static",
        "8-bit weights and activations with ranges fixed by calibration data (QDQ)",
        quantize::STATIC_OPTIONS,
    ),
    PassEntry::of::<quantize::WeightQuantize>(
        "quantize.weights",
        "weights in 8, 4 or 2 bits by blocks of inputs; what is computed stays float",
        quantize::WEIGHT_OPTIONS,
    ),
    PassEntry::of::<quantize::EmbeddingQuantize>(
        "quantize.embeddings",
        "embedding tables in 8 bits with a scale per row, or in 4 with a scale per block",
        quantize::EMBEDDING_OPTIONS,
    ),
    PassEntry::of::<quantize::MixedQuantize>(
        "quantize.mixed",
        "weights and tables in 2, 4, 8 or 16 bits each, by what the outputs lose, within a budget",
        quantize::MIXED_OPTIONS,
    ),
    PassEntry::of::<quantize::Float8Quantize>(
        "quantize.float8",
        "weights as floats of 8 bits with a scale per output; what is computed stays float",
        quantize::FLOAT8_OPTIONS,
    ),
    PassEntry::of::<half::HalfConvert>(
        "quantize.half",
        "f16 or bf16: weights stored so, or the whole graph computed so where it does not overflow",
        half::OPTIONS,
    ),
    PassEntry::of::<quantize::IntegerOnly>(
        "quantize.integer",
        "after quantize.static: sums become levels by integer multipliers and shifts, without floats",
        &[],
    ),
    PassEntry::of::<quantize::QOperator>(
        "quantize.qoperator",
        "after quantize.static: QDQ pairs and what stands between them as operators on levels",
        &[],
    ),
];

/// Finds a pass by its name.
///
/// # Errors
/// [`PassError::UnknownPass`] listing all names.
pub fn pass_entry(name: &str) -> Result<&'static PassEntry, PassError> {
    PASSES.iter().find(|entry| entry.name == name).ok_or_else(|| PassError::UnknownPass {
        name: name.into(),
        known: PASSES.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", "),
    })
}

/// Why a pass could not make its plan.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error("no pass is called `{name}`; there are {known}")]
    UnknownPass { name: String, known: String },

    #[error("settings of `{pass}`: {message}")]
    Settings { pass: &'static str, message: String, known: String },

    #[error("`{tensor}` is not finite in calibration batch {batch}")]
    NotFinite { tensor: String, batch: usize },

    #[error("weight `{tensor}` holds NaN or infinity")]
    WeightNotFinite { tensor: String },

    #[error("it needs calibration data, and none was given")]
    NoCalibration,

    #[error("the importance \"loss\" needs calibration data with labels")]
    NoLabels,

    #[error("the calibration data holds no example")]
    EmptyCalibration,

    #[error("the model is of opset {found}; it needs {needed} or later")]
    Opset { found: i64, needed: i64 },

    #[error("the model cannot be converted to opset {needed}, which its formats need")]
    Convert { needed: i64, source: OpsetError },

    #[error("`exclude` pattern `{pattern}` matches no node and no tensor")]
    UnmatchedExclude { pattern: String },

    #[error("`bits` pattern `{pattern}` matches no product that is quantized")]
    UnmatchedBits { pattern: String },

    #[error("`{tensor}`, a scale or zero point of `{node}`, is computed from what the model reads")]
    NoScale { node: String, tensor: String },

    #[error("`{node}` has levels from {low} to {high}, which no type of opset {opset} holds")]
    NoType { node: String, low: i64, high: i64, opset: i64 },

    #[error("`{node}`: {source}")]
    Levels { node: String, source: OpError },

    #[error("channels cannot be cut at `{node}`: {message}")]
    Cut { node: String, message: String },

    #[error("`{pattern}` names no residual block; there are {known}")]
    NoBlock { pattern: String, known: String },

    #[error("output `{output}` cannot be made shorter: {reason}")]
    Output { output: String, reason: String },

    #[error("tokens cannot be left out: `{node}` {reason} (`{tensor}`)")]
    Tokens { node: String, tensor: String, reason: &'static str },

    #[error("calibration data: {message}")]
    Data { message: String, hint: String },

    #[error(
        "the importance \"activation\" needs to know what `{tensor}` is multiplied with, and no \
         product says it"
    )]
    NoActivation { tensor: String },

    #[error(transparent)]
    Train(#[from] TrainError),

    #[error(transparent)]
    Runtime(#[from] RuntimeError),

    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl PassError {
    /// The user's next step.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownPass { .. } => "list them with their settings: `attar passes`".into(),
            Self::Settings { known, .. } if known.is_empty() => "it has no settings".into(),
            Self::Settings { known, .. } => {
                format!("its settings are {known}; see `attar passes`")
            }
            Self::NotFinite { tensor, .. } => {
                format!("keep its node in float: `exclude = [\"{tensor}\"]`")
            }
            Self::WeightNotFinite { tensor } => {
                format!("the model is broken there; leave it out with `exclude = [\"{tensor}\"]`")
            }
            Self::NoCalibration => "give a sample of your data: `--calibration PATH`".into(),
            Self::NoLabels => {
                "give labelled text, images or arrays; \"taylor\" does without".into()
            }
            Self::EmptyCalibration => "give at least one example".into(),
            Self::Opset { needed, .. } => format!("export the model for opset {needed} or later"),
            Self::Convert { .. } => "choose a format that older operator sets have".into(),
            Self::UnmatchedExclude { .. } | Self::UnmatchedBits { .. } => {
                "see the names: `attar inspect MODEL`".into()
            }
            Self::NoScale { node, .. } | Self::Levels { node, .. } => {
                format!("keep it in float: `exclude = [\"{node}\"]`")
            }
            Self::NoType { .. } => "convert the model: `attar convert --opset 25`".into(),
            Self::Cut { node, .. } => format!("leave it out: `exclude = [\"{node}\"]`"),
            Self::NoBlock { .. } => "blocks are named by the node that ends them".into(),
            Self::Output { .. } => "see what the model returns: `attar inspect MODEL`".into(),
            Self::Tokens { .. } => "the model needs all its tokens: leave this step out".into(),
            Self::Data { hint, .. } => hint.clone(),
            Self::NoActivation { tensor } => {
                format!(
                    "leave it out with `exclude = [\"{tensor}\"]`, or choose another importance"
                )
            }
            Self::Train(error) => error.hint(),
            Self::Runtime(error) => return error.hint(),
            Self::Graph(_) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_default_is_a_setting_that_its_pass_takes() {
        for entry in PASSES {
            // What must be given is a fraction, or a number of something.
            let is_taken = ["0.5", "1"].into_iter().any(|given| {
                let lines = entry.options.iter().map(|option| {
                    let value = if option.default.is_empty() { given } else { option.default };
                    format!("{} = {value}\n", option.key)
                });
                entry.build(lines.collect::<String>().parse().unwrap()).is_ok()
            });
            assert!(is_taken, "{}", entry.name);
        }
    }

    #[test]
    fn a_misspelt_key_is_an_error_that_lists_the_right_ones() {
        let settings = "sparsty = 0.5".parse().unwrap();
        let error = pass_entry("prune.magnitude").unwrap().build(settings).err().unwrap();
        assert!(error.to_string().contains("unknown field `sparsty`"), "{error}");
        assert_eq!(error.hint().unwrap(), "its settings are sparsity, scope; see `attar passes`");
    }
}
