//! Training any ONNX graph: a reverse-mode tape over the operators of `attar-ops`.

mod error;
mod tape;

pub use error::TrainError;
pub use tape::{Recording, StepContext, Tape, TapeOptions};
