//! Data sets, metrics and measurements. Knows no pass and names no particular runtime.

pub mod data;
mod embed;
mod error;
mod image_input;
mod interval;
mod invariance;
mod latency;
pub mod metrics;
mod prepare;
mod preprocessing;
mod size;
mod states;
mod text_input;
mod vocabulary;

pub use data::{DataKind, Dataset, Split};
pub use embed::{
    Embeddings, Scores, embed, gives_one_score, rows_output, run_encoded, run_sequences,
    run_tensors, score_images, score_pairs,
};
pub use error::EvaluateError;
pub use image_input::{decode_image, gray_image, image_feeds};
pub use interval::{Interval, mean_interval, paired_interval, resampled_interval};
pub use invariance::{Agreement, Deviation, Invariance, agreement, batch_invariance, deviation};
pub use latency::{Latency, Shape, measure, synthetic_feeds};
pub use prepare::{TopicsSummary, WordnetSummary, prepare_wordnet, prepare_wordnet_topics};
pub use preprocessing::{ImageInput, Preprocessing, Resample, TextInput};
pub use size::model_size_bytes;
pub use states::States;
pub use text_input::{Encoded, TextEncoder, tokenizer_size};
pub use vocabulary::{
    MadeTokenizer, TokenizerKind, TokenizerOptions, TrimOptions, TrimmedTokenizer, make_tokenizer,
    trim_tokenizer,
};

/// Hears how far long work has come.
pub trait Progress: Sync {
    fn advance(&self, what: &str, done: usize, total: usize);
}

/// Hears nothing.
pub struct Silent;

impl Progress for Silent {
    fn advance(&self, _: &str, _: usize, _: usize) {}
}
