//! What text networks other than transformers share: inputs, embeddings, the way from tokens to one
//! vector.

use attar_graph::{Dim, Node};
use attar_tensor::DType;

use super::options::Options;
use super::{ArchitectureOption, logits, option};
use crate::ImportError;
use crate::build::Builder;
use crate::text::{Mode, Pooling};
use crate::weights::drawing::Initial;

/// How the vectors of tokens may become one.
pub(super) const POOLINGS: [&str; 3] = ["mean", "cls", "max"];

pub(super) const VOCABULARY: ArchitectureOption =
    option("vocabulary", "10000", "Tokens that the tokenizer knows");
pub(super) const EMBEDDING: ArchitectureOption =
    option("embedding", "128", "Size of the tokens' vectors");
pub(super) const LENGTH: ArchitectureOption =
    option("length", "128", "Tokens that texts are cut to");
pub(super) const CLASSES: ArchitectureOption = option("classes", "2", "Scores that come out");
pub(super) const DROPOUT: ArchitectureOption =
    option("dropout", "0.2", "Fraction of vectors that training leaves out");

/// ONNX's number of f32, for `Cast`.
const ONNX_FLOAT: i64 = 1;

pub(super) fn pooling_mode(name: &str) -> Mode {
    match name {
        "cls" => Mode::Cls,
        "max" => Mode::Max,
        _ => Mode::Mean,
    }
}

/// Even within ±¼, of about the variance that trained vectors of words have (Kim, 2014,
/// arXiv:1408.5882).
pub(super) const TABLE: Initial = Initial::Uniform(0.25);

/// Token ids and mask.
pub(super) struct Texts {
    pub(super) ids: String,
    /// As floats, [batch, sequence].
    pub(super) mask: String,
}

impl Texts {
    /// Declares both; the names begin with `prefix`.
    pub(super) fn declare(b: &mut Builder, prefix: &str) -> Self {
        let dims = ["batch", "sequence"].map(|axis| Dim::symbol(&format!("{prefix}{axis}")));
        let (ids, mask) = (format!("{prefix}input_ids"), format!("{prefix}attention_mask"));
        b.input(&ids, DType::I64, &dims);
        b.input(&mask, DType::I64, &dims);
        let cast = Node::new("Cast", "/mask/Cast", &[&mask], &[]);
        Self { ids, mask: b.push(cast.with_attribute("to", ONNX_FLOAT)) }
    }
}

/// Rows of the table at `path`, looked up by `ids`.
pub(super) fn embedding(
    b: &mut Builder,
    path: &str,
    ids: &str,
    shape: [usize; 2],
) -> Result<String, ImportError> {
    let table = b.weight(&format!("{path}.weight"), &shape)?;
    Ok(b.node("Gather", &format!("/{path}/Gather"), &[&table, ids]))
}

/// `tokens` [batch, sequence, size] to [batch, size].
pub(super) fn pooled(
    b: &mut Builder,
    name: &'static str,
    tokens: &str,
    mask: &str,
    size: usize,
) -> String {
    let pooling = Pooling { modes: vec![pooling_mode(name)], is_normalized: false };
    pooling.build(b, tokens, mask, size).0
}

/// The linear layer that gives the scores, after dropout.
pub(super) fn classifier(
    b: &mut Builder,
    options: &Options,
    vector: &str,
    size: usize,
) -> Result<(), ImportError> {
    let class_count = options.count("classes")?;
    let vector = b.dropout("/classifier/Dropout", vector, options.number("dropout", [0.0, 0.99])?);
    let scores = b.gemm("classifier", &vector, [class_count, size])?;
    logits(b, &scores, class_count);
    Ok(())
}
