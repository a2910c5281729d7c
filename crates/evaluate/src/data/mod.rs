//! Data sets on disk. A data set is a path; its kind is recognized from what lies there.

mod images;
mod labelled;
mod npy;
mod pairs;
mod retrieval;
mod rows;
mod split;
mod tensors;
mod text;

use std::path::{Path, PathBuf};

pub use images::{ImageSource, Images};
pub use labelled::Labelled;
pub use pairs::Pairs;
pub use retrieval::Retrieval;
pub use split::Split;
pub use tensors::{TensorLabels, Tensors, gather_rows};

use crate::EvaluateError;
use split::{Located, locate};

/// What a data set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataKind {
    /// BEIR layout: documents, queries, and which are relevant to which.
    Retrieval,
    /// Two texts and how alike they are.
    Pairs,
    /// Texts with a class each.
    Labelled,
    /// One text a line.
    Text,
    /// Labelled images.
    Images,
    /// Arrays, one for each input of a model.
    Tensors,
}

impl DataKind {
    pub const NAMES: &'static [(&'static str, Self)] = &[
        ("retrieval", Self::Retrieval),
        ("pairs", Self::Pairs),
        ("labelled", Self::Labelled),
        ("text", Self::Text),
        ("images", Self::Images),
        ("tensors", Self::Tensors),
    ];

    /// The kind that the content of `path` shows.
    fn recognize(path: &Path) -> Result<Self, EvaluateError> {
        let unknown = |message: &str| EvaluateError::UnknownKind {
            path: path.into(),
            message: message.into(),
        };
        let metadata = std::fs::metadata(path).map_err(EvaluateError::file(path))?;
        if metadata.is_dir() {
            return if path.join("corpus.jsonl").exists() {
                Ok(Self::Retrieval)
            } else if images::looks_like_images(path) {
                Ok(Self::Images)
            } else if tensors::looks_like_tensors(path) {
                Ok(Self::Tensors)
            } else {
                Err(unknown(
                    "the folder has no corpus.jsonl, no train.csv, no IDX files, no images and no \
                     arrays",
                ))
            };
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy" | "npz") => Ok(Self::Tensors),
            Some("tsv" | "csv") if labelled::is_labelled(path)? => Ok(Self::Labelled),
            Some("tsv" | "csv") => Ok(Self::Pairs),
            Some("jsonl") if pairs::is_pairs_jsonl(path)? => Ok(Self::Pairs),
            Some("jsonl") if labelled::is_labelled(path)? => Ok(Self::Labelled),
            Some("jsonl" | "txt") => Ok(Self::Text),
            _ => Err(unknown("a file is .txt, .tsv, .csv, .jsonl, .npz or .npy")),
        }
    }
}

/// A data set in memory; images as paths or bytes, decoded when used.
#[derive(Debug)]
pub enum Dataset {
    Retrieval(Retrieval),
    Pairs(Pairs),
    Labelled(Labelled),
    Text(Vec<String>),
    Images(Images),
    Tensors(Tensors),
}

impl Dataset {
    /// Reads a data set to measure on: of a divided one the test split. With `skip_bad`, rows that
    /// cannot be read are left out; the second result counts them.
    ///
    /// # Errors
    /// A path that is no data set, or a bad row with file and line.
    pub fn open(
        path: &Path,
        kind: Option<DataKind>,
        skip_bad: bool,
    ) -> Result<(Self, usize), EvaluateError> {
        Self::load(&test_part(path)?, kind, skip_bad, Split::Test)
    }

    /// As [`open`](Self::open), to calibrate with: of a divided set the training split, if there is
    /// one. Of plain text only `count` examples, spread over it, are ever held.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_sample(
        path: &Path,
        skip_bad: bool,
        count: usize,
    ) -> Result<(Self, usize), EvaluateError> {
        let (place, split) = match locate(path, Split::Train) {
            Located::At(Some(place)) => (place, Split::Train),
            Located::Undivided if has_split(path, Split::Train) => (path.into(), Split::Train),
            _ => (test_part(path)?, Split::Test),
        };
        if DataKind::recognize(&place)? != DataKind::Text {
            return Self::load(&place, None, skip_bad, split);
        }
        let mut bad = rows::BadRows::new(skip_bad);
        let texts = text::load_sample(&place, count, &mut bad)?;
        Ok((Self::Text(texts), bad.count()))
    }

    /// As [`open`](Self::open), the part of a data set that `split` names: of an undivided one all
    /// to train on, and none for the other splits.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_split(
        path: &Path,
        kind: Option<DataKind>,
        skip_bad: bool,
        split: Split,
    ) -> Result<Option<(Self, usize)>, EvaluateError> {
        match locate(path, split) {
            Located::At(Some(place)) => Self::load(&place, kind, skip_bad, split).map(Some),
            Located::Undivided if split == Split::Train || has_split(path, split) => {
                Self::load(path, kind, skip_bad, split).map(Some)
            }
            Located::At(None) | Located::Undivided => Ok(None),
        }
    }

    fn load(
        path: &Path,
        kind: Option<DataKind>,
        skip_bad: bool,
        split: Split,
    ) -> Result<(Self, usize), EvaluateError> {
        let kind = match kind {
            Some(kind) => kind,
            None => DataKind::recognize(path)?,
        };
        let mut bad = rows::BadRows::new(skip_bad);
        let data = match kind {
            DataKind::Retrieval => Self::Retrieval(Retrieval::load(path, split, &mut bad)?),
            DataKind::Pairs => Self::Pairs(Pairs::load(path, &mut bad)?),
            DataKind::Labelled => Self::Labelled(Labelled::load(path, &mut bad)?),
            DataKind::Text => Self::Text(text::load(path, &mut bad)?),
            DataKind::Images => Self::Images(Images::load(path, split, &mut bad)?),
            DataKind::Tensors => Self::Tensors(Tensors::load(path, &mut bad)?),
        };
        Ok((data, bad.count()))
    }

    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Retrieval(_) => "retrieval data",
            Self::Pairs(_) => "pairs",
            Self::Labelled(_) => "labelled texts",
            Self::Text(_) => "text",
            Self::Images(_) => "images",
            Self::Tensors(_) => "arrays",
        }
    }

    /// How many examples it has: queries of retrieval, pairs, texts, images, rows.
    pub fn example_count(&self) -> usize {
        match self {
            Self::Retrieval(data) => data.queries.len(),
            Self::Pairs(pairs) => pairs.scores.len(),
            Self::Labelled(data) => data.texts.len(),
            Self::Text(texts) => texts.len(),
            Self::Images(images) => images.images.len(),
            Self::Tensors(data) => data.count,
        }
    }

    /// The examples of these indices; of retrieval with all documents.
    ///
    /// # Errors
    /// None left.
    pub fn subset(&self, indices: &[usize]) -> Result<Self, EvaluateError> {
        fn pick<T: Clone>(list: &[T], indices: &[usize]) -> Vec<T> {
            indices.iter().map(|&index| list[index].clone()).collect()
        }
        Ok(match self {
            Self::Retrieval(data) => Self::Retrieval(Retrieval {
                documents: data.documents.clone(),
                queries: pick(&data.queries, indices),
                relevant: pick(&data.relevant, indices),
            }),
            Self::Pairs(pairs) => Self::Pairs(Pairs {
                first: pick(&pairs.first, indices),
                second: pick(&pairs.second, indices),
                scores: pick(&pairs.scores, indices),
            }),
            Self::Labelled(data) => Self::Labelled(data.subset(indices)),
            Self::Text(texts) => Self::Text(pick(texts, indices)),
            Self::Images(images) => Self::Images(Images {
                images: pick(&images.images, indices),
                labels: pick(&images.labels, indices),
                names: images.names.clone(),
            }),
            Self::Tensors(data) => Self::Tensors(data.subset(indices)?),
        })
    }

    /// All texts of the data set; none for images and arrays.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Self::Retrieval(data) => {
                data.documents.iter().chain(&data.queries).map(String::as_str).collect()
            }
            Self::Pairs(pairs) => {
                pairs.first.iter().chain(&pairs.second).map(String::as_str).collect()
            }
            Self::Labelled(Labelled { texts, .. }) | Self::Text(texts) => {
                texts.iter().map(String::as_str).collect()
            }
            Self::Images(_) | Self::Tensors(_) => Vec::new(),
        }
    }
}

/// The part of a data set to measure on, or all of an undivided one.
fn test_part(path: &Path) -> Result<PathBuf, EvaluateError> {
    match locate(path, Split::Test) {
        Located::Undivided => Ok(path.into()),
        Located::At(Some(place)) => Ok(place),
        Located::At(None) => {
            Err(EvaluateError::Format { path: path.into(), message: "it has no test split".into() })
        }
    }
}

/// Whether an undivided folder keeps this split in files of its own.
fn has_split(path: &Path, split: Split) -> bool {
    images::has_split(path, split) || retrieval::has_split(path, split)
}

/// `count` indices spread evenly over `0..total`: the same for the same numbers.
pub fn spread(total: usize, count: usize) -> Vec<usize> {
    let count = count.min(total);
    (0..count).map(|i| i * total / count).collect()
}
