//! Turning other formats into data sets that attar reads.

mod wordnet;

pub use wordnet::{WordnetSummary, prepare_wordnet};
