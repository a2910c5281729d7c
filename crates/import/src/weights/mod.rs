//! Named tensors of safetensors and `PyTorch` files, each given out once and checked.

mod pickle;
mod safetensors;
#[cfg(test)]
pub(crate) mod testing;
mod torch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use attar_tensor::{Bytes, DType, Tensor, map_file};

use crate::ImportError;

/// The tensors of one model.
pub(crate) struct Weights {
    /// The file, or the folder of several.
    source: PathBuf,
    tensors: BTreeMap<String, Stored>,
    /// What stands before every name of the architecture, as in `bert.`.
    prefix: String,
    taken: BTreeSet<String>,
}

struct Stored {
    tensor: Tensor,
    file: PathBuf,
}

impl Weights {
    /// Opens one file of weights, of whichever format it is.
    pub(crate) fn open(file: &Path) -> Result<Self, ImportError> {
        let mut weights = Self::empty(file);
        weights.add_file(file)?;
        Ok(weights)
    }

    /// Opens the weights of a Hugging Face folder, sharded or not.
    pub(crate) fn open_folder(folder: &Path) -> Result<Self, ImportError> {
        let whole = folder.join("model.safetensors");
        if whole.is_file() {
            return Self::open(&whole);
        }
        let mut shards = list(folder)?;
        shards.retain(|file| file.extension().is_some_and(|end| end == "safetensors"));
        if shards.is_empty() {
            let pickled = folder.join("pytorch_model.bin");
            if pickled.is_file() {
                return Self::open(&pickled);
            }
            return Err(ImportError::NoWeights { folder: folder.into() });
        }
        let mut weights = Self::empty(folder);
        for shard in &shards {
            weights.add_file(shard)?;
        }
        Ok(weights)
    }

    fn empty(source: &Path) -> Self {
        Self {
            source: source.into(),
            tensors: BTreeMap::new(),
            prefix: String::new(),
            taken: BTreeSet::new(),
        }
    }

    fn add_file(&mut self, file: &Path) -> Result<(), ImportError> {
        let bytes =
            map_file(file).map_err(|source| ImportError::Io { path: file.into(), source })?;
        for (name, tensor) in read_weights(file, &bytes)? {
            let stored = Stored { tensor, file: file.into() };
            if let Some(other) = self.tensors.insert(name.clone(), stored) {
                let file = file.into();
                return Err(ImportError::Duplicate { file, other: other.file, tensor: name });
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let mut weights = Self::empty(Path::new("test.safetensors"));
        for (name, tensor) in tensors {
            let file = weights.source.clone();
            weights.tensors.insert(name, Stored { tensor, file });
        }
        weights
    }

    /// Lets names go without `prefix` where the file has names with it.
    pub(crate) fn allow_prefix(&mut self, prefix: &str) {
        if self.tensors.keys().any(|name| name.starts_with(prefix)) {
            self.prefix = prefix.into();
        }
    }

    /// The stored name of `name`: with the prefix, and as older checkpoints call it.
    fn stored_name(&self, name: &str) -> Option<String> {
        let name = format!("{}{name}", self.prefix);
        if self.tensors.contains_key(&name) {
            return Some(name);
        }
        // TensorFlow's names of a normalization's scale and shift, kept by early conversions.
        let alias = if let Some(module) = name.strip_suffix("LayerNorm.weight") {
            format!("{module}LayerNorm.gamma")
        } else {
            format!("{}LayerNorm.beta", name.strip_suffix("LayerNorm.bias")?)
        };
        self.tensors.contains_key(&alias).then_some(alias)
    }

    fn find(&self, name: &str) -> Result<(String, &Stored), ImportError> {
        let missing = || ImportError::MissingTensor {
            file: self.source.clone(),
            tensor: format!("{}{name}", self.prefix),
        };
        let stored_name = self.stored_name(name).ok_or_else(missing)?;
        let stored = &self.tensors[&stored_name];
        Ok((stored_name, stored))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.stored_name(name).is_some()
    }

    /// The shape of a tensor, which must have `rank` axes.
    pub(crate) fn shape<const RANK: usize>(
        &self,
        name: &str,
    ) -> Result<[usize; RANK], ImportError> {
        let (name, stored) = self.find(name)?;
        stored
            .tensor
            .shape()
            .try_into()
            .map_err(|_| wrong_shape(name, stored, format!("{RANK} axes")))
    }

    /// The stored name and the values, as f32, of a tensor that must have `shape`.
    pub(crate) fn take(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> Result<(String, Tensor), ImportError> {
        let (name, stored) = self.find(name)?;
        if stored.tensor.shape() != shape {
            return Err(wrong_shape(name, stored, format!("{shape:?}")));
        }
        let found = stored.tensor.dtype();
        if !found.is_float() {
            let file = stored.file.clone();
            return Err(ImportError::NotFloat { file, tensor: name, found });
        }
        let tensor = stored.tensor.converted(DType::F32).expect("floats convert to floats");
        self.taken.insert(name.clone());
        Ok((name, tensor))
    }

    /// Names that nothing took, after checking that each begins or ends as one of
    /// `ignorable`.
    pub(crate) fn unused(
        &self,
        architecture: &'static str,
        ignorable: &[&str],
    ) -> Result<Vec<String>, ImportError> {
        let rest = self.tensors.keys().filter(|name| !self.taken.contains(*name));
        let (known, unexpected): (Vec<&String>, Vec<&String>) = rest.partition(|name| {
            let own = name.strip_prefix(&self.prefix).unwrap_or(name);
            ignorable.iter().any(|part| own.starts_with(part) || own.ends_with(part))
        });
        match unexpected.first() {
            None => Ok(known.into_iter().cloned().collect()),
            Some(&tensor) => Err(ImportError::UnexpectedTensor {
                file: self.tensors[tensor].file.clone(),
                tensor: tensor.clone(),
                count: unexpected.len(),
                architecture,
            }),
        }
    }
}

fn wrong_shape(tensor: String, stored: &Stored, expected: String) -> ImportError {
    let found = stored.tensor.shape().to_vec();
    ImportError::Shape { file: stored.file.clone(), tensor, found, expected }
}

/// The files of a folder in a fixed order.
fn list(folder: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let error = |source| ImportError::Io { path: folder.into(), source };
    let entries = std::fs::read_dir(folder).map_err(error)?;
    let mut files: Vec<PathBuf> =
        entries.map(|entry| Ok(entry.map_err(error)?.path())).collect::<Result<_, _>>()?;
    files.sort();
    Ok(files)
}

/// The tensors in the bytes of a file, whose content tells its format: names of files lie. `file`
/// is what errors call it.
///
/// # Errors
/// When the bytes are neither safetensors nor a state dict of `PyTorch`, or have tensors of a type
/// that no model has.
pub fn read_weights(file: &Path, bytes: &Bytes) -> Result<BTreeMap<String, Tensor>, ImportError> {
    if torch::recognizes(bytes) {
        torch::parse(file, bytes)
    } else {
        safetensors::parse(file, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(names: &[&str]) -> Weights {
        let tensor = Tensor::new(&[2], &[1.0_f32, 2.0]);
        Weights::from_tensors(names.iter().map(|&name| (name.to_string(), tensor.clone())))
    }

    #[test]
    fn prefixes_and_old_names_of_normalizations_are_found() {
        let mut weights = weights(&["bert.a.LayerNorm.gamma", "bert.a.LayerNorm.beta"]);
        weights.allow_prefix("bert.");
        assert_eq!(weights.take("a.LayerNorm.weight", &[2]).unwrap().0, "bert.a.LayerNorm.gamma");
        assert_eq!(weights.take("a.LayerNorm.bias", &[2]).unwrap().0, "bert.a.LayerNorm.beta");
    }

    #[test]
    fn a_wrong_shape_names_tensor_file_and_both_shapes() {
        let error = weights(&["w"]).take("w", &[2, 1]).unwrap_err();
        assert_eq!(error.to_string(), "`w` in `test.safetensors` has shape [2], expected [2, 1]");
    }

    #[test]
    fn a_missing_tensor_is_named_with_its_prefix() {
        let mut weights = weights(&["bert.a"]);
        weights.allow_prefix("bert.");
        let error = weights.take("b", &[2]).unwrap_err();
        assert_eq!(error.to_string(), "`test.safetensors` has no tensor `bert.b`");
    }

    #[test]
    fn integers_are_not_taken_for_weights() {
        let tensor = Tensor::new(&[1], &[1_i64]);
        let mut weights = Weights::from_tensors([("w".to_string(), tensor)]);
        let error = weights.take("w", &[1]).unwrap_err();
        assert_eq!(error.to_string(), "`w` in `test.safetensors` is i64, expected a float");
    }

    #[test]
    fn what_the_architecture_does_not_know_stops_the_import() {
        let mut weights = weights(&["a", "pooler.w", "lora_a"]);
        weights.take("a", &[2]).unwrap();
        assert_eq!(weights.unused("bert", &["pooler.", "lora_a"]).unwrap(), ["lora_a", "pooler.w"]);
        let error = weights.unused("bert", &["pooler."]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`test.safetensors` has `lora_a`, which is not part of bert (1 such in all)"
        );
    }
}
