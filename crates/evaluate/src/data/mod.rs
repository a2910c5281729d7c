//! Data sets on disk. A data set is a path; its kind is recognized from what lies there.

mod images;
mod pairs;
mod retrieval;
mod rows;
mod text;

use std::path::Path;

pub use images::{ImageSource, Images};
pub use pairs::Pairs;
pub use retrieval::Retrieval;

use crate::EvaluateError;

/// What a data set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataKind {
    /// BEIR layout: documents, queries, and which are relevant to which.
    Retrieval,
    /// Two texts and how alike they are.
    Pairs,
    /// One text a line.
    Text,
    /// Labelled images.
    Images,
}

impl DataKind {
    pub const NAMES: &'static [(&'static str, Self)] = &[
        ("retrieval", Self::Retrieval),
        ("pairs", Self::Pairs),
        ("text", Self::Text),
        ("images", Self::Images),
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
            } else {
                Err(unknown("the folder has no corpus.jsonl, no IDX files and no images"))
            };
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("txt") => Ok(Self::Text),
            Some("tsv" | "csv") => Ok(Self::Pairs),
            Some("jsonl") => {
                if pairs::is_pairs_jsonl(path)? {
                    Ok(Self::Pairs)
                } else {
                    Ok(Self::Text)
                }
            }
            _ => Err(unknown("a file is .txt, .tsv, .csv or .jsonl")),
        }
    }
}

/// A data set in memory; images as paths or bytes, decoded when used.
#[derive(Debug)]
pub enum Dataset {
    Retrieval(Retrieval),
    Pairs(Pairs),
    Text(Vec<String>),
    Images(Images),
}

impl Dataset {
    /// Reads a data set. With `skip_bad`, rows that cannot be read are left out; the second result
    /// counts them.
    ///
    /// # Errors
    /// A path that is no data set, or a bad row with file and line.
    pub fn open(
        path: &Path,
        kind: Option<DataKind>,
        skip_bad: bool,
    ) -> Result<(Self, usize), EvaluateError> {
        let kind = match kind {
            Some(kind) => kind,
            None => DataKind::recognize(path)?,
        };
        let mut bad = rows::BadRows::new(skip_bad);
        let data = match kind {
            DataKind::Retrieval => Self::Retrieval(Retrieval::load(path, &mut bad)?),
            DataKind::Pairs => Self::Pairs(Pairs::load(path, &mut bad)?),
            DataKind::Text => Self::Text(text::load(path, &mut bad)?),
            DataKind::Images => Self::Images(Images::load(path, &mut bad)?),
        };
        Ok((data, bad.count()))
    }

    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Retrieval(_) => "retrieval data",
            Self::Pairs(_) => "pairs",
            Self::Text(_) => "text",
            Self::Images(_) => "images",
        }
    }

    /// All texts of the data set; none for images.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Self::Retrieval(data) => {
                data.documents.iter().chain(&data.queries).map(String::as_str).collect()
            }
            Self::Pairs(pairs) => {
                pairs.first.iter().chain(&pairs.second).map(String::as_str).collect()
            }
            Self::Text(texts) => texts.iter().map(String::as_str).collect(),
            Self::Images(_) => Vec::new(),
        }
    }
}

/// `count` indices spread evenly over `0..total`: the same for the same numbers.
pub fn spread(total: usize, count: usize) -> Vec<usize> {
    let count = count.min(total);
    (0..count).map(|i| i * total / count).collect()
}
