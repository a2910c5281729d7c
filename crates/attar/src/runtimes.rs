//! The runtimes by name.

use std::num::NonZeroUsize;
use std::path::Path;

use attar_runtime::{Builtin, Ort, Runtime};

use crate::Error;

/// What `--runtime` takes.
pub const RUNTIME_NAMES: &[&str] = &["builtin", "ort"];

/// Finds a runtime by name; `ort_path` is ONNX Runtime's library, if the user named one.
///
/// # Errors
/// An unknown name, or a library that is not found.
pub fn runtime(name: &str, ort_path: Option<&Path>) -> Result<Box<dyn Runtime>, Error> {
    match name {
        "builtin" => Ok(Box::new(Builtin)),
        "ort" => {
            let found = Ort::find(ort_path);
            let fail = |source| Error::Runtime { subject: "--runtime ort".into(), source };
            Ok(Box::new(found.map_err(fail)?))
        }
        other => Err(Error::Usage {
            message: format!("there is no runtime `{other}`"),
            hint: format!("the runtimes are {}", RUNTIME_NAMES.join(" and ")),
        }),
    }
}

/// Every core of this machine that attar may use.
pub fn default_threads() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
