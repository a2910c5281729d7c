//! A model to evaluate, with what lies beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use attar_evaluate::{ImageInput, Preprocessing, TextEncoder, model_size_bytes};
use attar_graph::Model;
use attar_runtime::{RunOptions, Runtime, Session};

use crate::{Error, load};

/// A model, its preprocessing, and the name reports give it.
#[derive(Clone)]
pub struct Subject {
    pub name: String,
    pub path: PathBuf,
    pub model: Model,
    pub size_bytes: u64,
    pub preprocessing: Option<Preprocessing>,
}

impl Subject {
    /// Reads a model file, or the `model.onnx` of a run folder, with the `attar.toml` beside it.
    ///
    /// # Errors
    /// Files that are missing or broken.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let path = if path.is_dir() { path.join("model.onnx") } else { path.to_path_buf() };
        Ok(Self {
            name: path.display().to_string(),
            model: load(&path)?,
            size_bytes: model_size_bytes(&path)?,
            preprocessing: Preprocessing::beside(&path)?,
            path,
        })
    }

    /// The same model, found from any folder: its tokenizer is named in full.
    ///
    /// # Errors
    /// A tokenizer that is not there.
    pub(crate) fn anywhere(&self) -> Result<Self, Error> {
        let mut subject = self.clone();
        if let Some(text) = subject.preprocessing.as_mut().and_then(|p| p.text.as_mut()) {
            let path = self.folder().join(&text.tokenizer);
            text.tokenizer = path.canonicalize().map_err(Error::file(&path))?;
        }
        Ok(subject)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    pub(crate) fn session(
        &self,
        runtime: &dyn Runtime,
        options: &RunOptions,
    ) -> Result<Box<dyn Session>, Error> {
        runtime.load(&self.model, options).map_err(|source| Error::Runtime {
            subject: format!("{} on {}", self.name, runtime.name()),
            source,
        })
    }

    /// The output that `attar.toml` names.
    pub(crate) fn output(&self) -> Option<&str> {
        self.preprocessing.as_ref()?.output.as_deref()
    }

    /// Its inputs that are outputs of the call before, by `attar.toml`.
    pub(crate) fn states(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.preprocessing.as_ref().map_or(&NONE, |preprocessing| &preprocessing.states)
    }

    /// The names of its classes, where `attar.toml` has them.
    pub(crate) fn labels(&self) -> &[String] {
        self.preprocessing.as_ref().map_or(&[], |preprocessing| &preprocessing.labels)
    }

    pub(crate) fn text_encoder(&self) -> Result<TextEncoder, Error> {
        let missing = Preprocessing::default();
        let preprocessing = self.preprocessing.as_ref().unwrap_or(&missing);
        Ok(TextEncoder::new(preprocessing, self.folder())?)
    }

    pub(crate) fn image_input(&self) -> Result<&ImageInput, Error> {
        let image = self.preprocessing.as_ref().and_then(|p| p.image.as_ref());
        image
            .ok_or_else(|| attar_evaluate::EvaluateError::NoPreprocessing { data: "images" }.into())
    }
}
