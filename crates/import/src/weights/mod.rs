//! Named tensors of safetensors and `PyTorch` files, each given out once and checked.

pub(crate) mod drawing;
mod pickle;
mod safetensors;
mod shards;
#[cfg(test)]
pub(crate) mod testing;
mod torch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use attar_tensor::{Bytes, DType, Tensor, map_file};

use self::drawing::Drawing;
use crate::ImportError;

/// The tensors of one model.
pub(crate) struct Weights {
    /// Makes every tensor that is asked for, where there is no file.
    drawing: Option<Drawing>,
    /// The file, or the folder of several.
    source: PathBuf,
    tensors: BTreeMap<String, Stored>,
    /// What stands before every name of the architecture, as in `bert.`.
    prefix: String,
    /// Whether names are now those of a head, which stands beside the encoder.
    has_left_prefix: bool,
    taken: BTreeSet<String>,
    /// How many tensors of each other type became f32.
    converted: BTreeMap<&'static str, usize>,
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

    /// Opens the weights of a Hugging Face folder, in one file or in shards.
    pub(crate) fn open_folder(folder: &Path) -> Result<Self, ImportError> {
        if let Some(weights) = Self::open_named(folder, "model.safetensors")? {
            return Ok(weights);
        }
        let mut unlisted = list(folder)?;
        unlisted.retain(|file| file.extension().is_some_and(|end| end == "safetensors"));
        if !unlisted.is_empty() {
            return Self::open_all(folder, &unlisted);
        }
        Self::open_named(folder, "pytorch_model.bin")?
            .ok_or_else(|| ImportError::NoWeights { folder: folder.into() })
    }

    /// The file called `name`, or the shards of its index; `None` where there is neither.
    fn open_named(folder: &Path, name: &str) -> Result<Option<Self>, ImportError> {
        let (whole, index) = (folder.join(name), folder.join(format!("{name}.index.json")));
        if whole.is_file() {
            Self::open(&whole).map(Some)
        } else if index.is_file() {
            Self::open_shards(folder, &index).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The shards that `index` lists, each of which must hold what it says.
    fn open_shards(folder: &Path, index: &Path) -> Result<Self, ImportError> {
        let shards = shards::read(folder, index)?;
        let files: Vec<PathBuf> = shards.keys().cloned().collect();
        let weights = Self::open_all(folder, &files)?;
        for (file, names) in shards {
            let is_in_file =
                |name: &String| weights.tensors.get(name).is_some_and(|stored| stored.file == file);
            if let Some(tensor) = names.into_iter().find(|name| !is_in_file(name)) {
                return Err(ImportError::MissingTensor { file, tensor });
            }
        }
        Ok(weights)
    }

    fn open_all(source: &Path, files: &[PathBuf]) -> Result<Self, ImportError> {
        let mut weights = Self::empty(source);
        for file in files {
            weights.add_file(file)?;
        }
        Ok(weights)
    }

    fn empty(source: &Path) -> Self {
        Self {
            drawing: None,
            source: source.into(),
            tensors: BTreeMap::new(),
            prefix: String::new(),
            has_left_prefix: false,
            taken: BTreeSet::new(),
            converted: BTreeMap::new(),
        }
    }

    /// Weights that are drawn as they are asked for.
    pub(crate) fn drawn(drawing: Drawing) -> Self {
        Self { drawing: Some(drawing), ..Self::empty(Path::new("")) }
    }

    /// Says the shape that a drawn weight is going to have, for those who ask what there is.
    pub(crate) fn declare(&mut self, name: &str, shape: &[usize]) {
        let drawing = self.drawing.as_mut().expect("only drawn weights are declared");
        drawing.shapes.insert(name.into(), shape.to_vec());
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

    /// From now on names are whole: those of a head, beside the encoder.
    pub(crate) fn leave_prefix(&mut self) {
        self.has_left_prefix = true;
    }

    fn prefixed(&self, name: &str) -> String {
        if self.has_left_prefix { name.into() } else { format!("{}{name}", self.prefix) }
    }

    /// The stored name of `name`: with the prefix, and as older checkpoints call it.
    fn stored_name(&self, name: &str) -> Option<String> {
        let name = self.prefixed(name);
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
            tensor: self.prefixed(name),
        };
        let stored_name = self.stored_name(name).ok_or_else(missing)?;
        let stored = &self.tensors[&stored_name];
        Ok((stored_name, stored))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        match &self.drawing {
            Some(drawing) => drawing.shapes.contains_key(name),
            None => self.stored_name(name).is_some(),
        }
    }

    /// The shape of a tensor, which must have `rank` axes.
    pub(crate) fn shape<const RANK: usize>(
        &self,
        name: &str,
    ) -> Result<[usize; RANK], ImportError> {
        if let Some(drawing) = &self.drawing {
            let shape = drawing.shapes.get(name).and_then(|shape| shape.as_slice().try_into().ok());
            return Ok(shape.expect("a drawn weight is declared before it is asked for"));
        }
        let (name, stored) = self.find(name)?;
        stored
            .tensor
            .shape()
            .try_into()
            .map_err(|_| wrong_shape(name, stored, format!("{RANK} axes")))
    }

    /// The stored name and the values, as f32, of a tensor that must have `shape`.
    ///
    /// Half precision is not kept behind a `Cast`: passes and kernels work on f32 initializers, a
    /// runtime would fold the `Cast` while it loads, and f32 holds every value exactly.
    pub(crate) fn take(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> Result<(String, Tensor), ImportError> {
        if let Some(drawing) = &mut self.drawing {
            return Ok((name.into(), drawing.draw(name, shape)?));
        }
        let (name, stored) = self.find(name)?;
        if stored.tensor.shape() != shape {
            return Err(wrong_shape(name, stored, format!("{shape:?}")));
        }
        let found = stored.tensor.dtype();
        let tensor = match found {
            DType::F32 => stored.tensor.clone(),
            DType::F16 | DType::BF16 | DType::F64 => {
                let values = stored.tensor.to_f32().expect("these convert");
                *self.converted.entry(found.name()).or_default() += 1;
                Tensor::new(shape, &values)
            }
            // 8-bit floats mean little without the scales that stand beside them.
            _ => {
                let file = stored.file.clone();
                return Err(ImportError::NotFloat { file, tensor: name, found });
            }
        };
        self.taken.insert(name.clone());
        Ok((name, tensor))
    }

    /// What was done to the weights that were taken, for the user to know.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let all = self.taken.len();
        let remark = |(dtype, count): (&&str, &usize)| {
            let how = if *dtype == DType::F64.name() { "rounded to it" } else { "exactly" };
            format!("{count} of {all} weights are {dtype} in the file and f32 in the model, {how}")
        };
        self.converted.iter().map(remark).collect()
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
    fn half_precision_is_converted_and_told() {
        let halves = Tensor::new(&[2], &[0.1_f32, -2.5]).converted(DType::BF16).unwrap();
        let mut weights = Weights::from_tensors([("w".to_string(), halves.clone())]);
        let (_, tensor) = weights.take("w", &[2]).unwrap();
        assert_eq!(tensor.dtype(), DType::F32);
        assert_eq!(tensor.to_f64(), halves.to_f64());
        let remark = "1 of 1 weights are bf16 in the file and f32 in the model, exactly";
        assert_eq!(weights.remarks(), [remark]);
    }

    #[test]
    fn a_head_stands_beside_the_prefixed_encoder() {
        let mut weights = weights(&["bert.a", "classifier.w"]);
        weights.allow_prefix("bert.");
        weights.take("a", &[2]).unwrap();
        let error = weights.take("classifier.w", &[2]).unwrap_err();
        assert!(error.to_string().ends_with("no tensor `bert.classifier.w`"), "{error}");
        weights.leave_prefix();
        weights.take("classifier.w", &[2]).unwrap();
        assert!(weights.unused("bert", &[]).unwrap().is_empty());
    }

    #[test]
    fn integers_are_not_taken_for_weights() {
        let tensor = Tensor::new(&[1], &[1_i64]);
        let mut weights = Weights::from_tensors([("w".to_string(), tensor)]);
        let error = weights.take("w", &[1]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`w` in `test.safetensors` is i64, expected f32, f16, bf16 or f64"
        );
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
