//! What is trained on, and what training is watched by.

use std::path::Path;

use attar_evaluate::data::{ImageSource, TensorLabels};
use attar_evaluate::{DataKind, Dataset, Split};
use attar_train::Rng;

use crate::Error;

/// What training is watched by.
#[derive(Clone, Debug, PartialEq)]
pub enum Validation<'a> {
    /// By nothing: the last weights are the result.
    None,
    /// The validation split of the data, if it has one.
    OwnSplit,
    /// A part of the training data, which is then not trained on.
    Fraction(f64),
    Path(&'a Path),
}

/// A data set to train on.
pub struct TrainingData {
    pub train: Dataset,
    pub validation: Option<Dataset>,
    /// Rows left out because they cannot be read.
    pub bad_count: usize,
}

/// Sets the draw that parts validation from training apart from all others of the same seed.
const PARTING: u64 = 0x7061_7274;

impl TrainingData {
    /// Reads the training split of a data set, or all of an undivided one.
    ///
    /// # Errors
    /// A path that is no data set, bad rows, or parts that hold nothing.
    pub fn open(
        path: &Path,
        validation: &Validation,
        kind: Option<DataKind>,
        skip_bad: bool,
        seed: u64,
    ) -> Result<Self, Error> {
        let missing = || Error::Usage {
            message: format!("{} has no training split", path.display()),
            hint: "give the file or folder to train on itself".into(),
        };
        let (train, mut bad_count) =
            Dataset::open_split(path, kind, skip_bad, Split::Train)?.ok_or_else(missing)?;
        let mut data = Self { train, validation: None, bad_count: 0 };
        let opened = match validation {
            Validation::None => None,
            Validation::OwnSplit => Dataset::open_split(path, kind, skip_bad, Split::Validation)?,
            Validation::Path(path) => {
                Some(match Dataset::open_split(path, kind, skip_bad, Split::Validation)? {
                    Some(opened) => opened,
                    None => Dataset::open(path, kind, skip_bad)?,
                })
            }
            Validation::Fraction(fraction) => {
                data.part(*fraction, seed)?;
                None
            }
        };
        if let Some((validation, more)) = opened {
            bad_count += more;
            data.validation = Some(validation);
        }
        data.bad_count = bad_count;
        Ok(data)
    }

    /// Takes a part of the examples, drawn by the seed, for validation.
    fn part(&mut self, fraction: f64, seed: u64) -> Result<(), Error> {
        let count = self.train.example_count();
        let taken = (fraction * count as f64).round() as usize;
        if !(fraction > 0.0 && fraction < 1.0) || taken == 0 || taken >= count {
            return Err(Error::Usage {
                message: format!("{fraction} of {count} examples cannot be validated on"),
                hint: "give a part between 0 and 1 that leaves something to train on".into(),
            });
        }
        let mut order: Vec<usize> = (0..count).collect();
        Rng::new(&[seed, PARTING]).shuffle(&mut order);
        let (validation, train) = order.split_at_mut(taken);
        validation.sort_unstable();
        train.sort_unstable();
        self.validation = Some(self.train.subset(validation)?);
        self.train = self.train.subset(train)?;
        Ok(())
    }

    /// A sum over all that is trained on and watched by: a run goes on only with the same data.
    pub(crate) fn checksum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        add(&mut hasher, &self.train);
        if let Some(validation) = &self.validation {
            hasher.update(b"validation");
            add(&mut hasher, validation);
        }
        hasher.finalize()
    }
}

fn add(hasher: &mut crc32fast::Hasher, data: &Dataset) {
    let mut number = |number: u64| hasher.update(&number.to_le_bytes());
    number(data.example_count() as u64);
    match data {
        Dataset::Labelled(data) => data.labels.iter().for_each(|&label| number(label as u64)),
        Dataset::Images(data) => data.labels.iter().for_each(|&label| number(label as u64)),
        Dataset::Pairs(pairs) => pairs.scores.iter().for_each(|score| number(score.to_bits())),
        Dataset::Retrieval(data) => {
            data.relevant.iter().flatten().for_each(|&(document, _)| number(document as u64));
        }
        Dataset::Text(_) | Dataset::Tensors(_) => {}
    }
    for text in data.texts() {
        hasher.update(text.as_bytes());
        hasher.update(&[0]);
    }
    match data {
        Dataset::Images(images) => images.images.iter().for_each(|image| match image {
            ImageSource::File(path) => hasher.update(path.as_os_str().as_encoded_bytes()),
            ImageSource::Gray { pixels, .. } => hasher.update(pixels),
        }),
        Dataset::Tensors(data) => {
            for (name, tensor) in &data.arrays {
                hasher.update(name.as_bytes());
                hasher.update(tensor.bytes());
            }
            match &data.labels {
                TensorLabels::None => {}
                TensorLabels::Values(values) => hasher.update(values.bytes()),
                TensorLabels::Classes(classes) => {
                    classes.iter().for_each(|&class| hasher.update(&(class as u64).to_le_bytes()));
                }
            }
        }
        _ => {}
    }
}
