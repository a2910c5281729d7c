//! The parts of a data set: what is trained on, what training is watched by, what is measured at
//! the end.

use std::path::{Path, PathBuf};

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Validation,
    Test,
}

impl Split {
    /// Names of its file or folder.
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train"],
            Self::Validation => &["validation", "val", "dev"],
            Self::Test => &["test"],
        }
    }
}

/// What a path holds of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Located {
    /// There are no splits by file or folder: all lies at one place.
    Undivided,
    /// The split's own place, or none where others are there and this one is not.
    At(Option<PathBuf>),
}

const EXTENSIONS: &[&str] = &["csv", "tsv", "jsonl", "txt", "npz"];

/// A folder with `train.csv`, or with `train/` and `validation/` or `test/`, is divided.
pub(super) fn locate(path: &Path, split: Split) -> Located {
    let file = |split: Split| {
        let names = split.names().iter();
        let mut files = names.flat_map(|name| EXTENSIONS.iter().map(move |e| (name, e)));
        files.find_map(|(name, extension)| {
            let file = path.join(format!("{name}.{extension}"));
            file.is_file().then_some(file)
        })
    };
    let folder = |split: Split| {
        let mut folders = split.names().iter().map(|name| path.join(name));
        folders.find(|folder| folder.is_dir())
    };
    let others = [Split::Validation, Split::Test];
    if !path.is_dir() {
        Located::Undivided
    } else if file(Split::Train).is_some() {
        Located::At(file(split))
    } else if folder(Split::Train).is_some() && others.into_iter().any(|s| folder(s).is_some()) {
        Located::At(folder(split))
    } else {
        Located::Undivided
    }
}

#[cfg(test)]
mod tests {
    use super::super::Dataset;

    #[test]
    fn what_is_tested_is_not_calibrated_with() {
        let folder = std::env::temp_dir().join(format!("attar-split-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (name, texts) in [("train.txt", "a\nb\n"), ("test.txt", "c\n")] {
            std::fs::write(folder.join(name), texts).unwrap();
        }
        let (sample, _) = Dataset::open_sample(&folder, false, 10).unwrap();
        assert_eq!(sample.texts(), ["a", "b"]);
        let (tested, _) = Dataset::open(&folder, None, false).unwrap();
        assert_eq!(tested.texts(), ["c"]);
        std::fs::remove_file(folder.join("train.txt")).unwrap();
        let (sample, _) = Dataset::open_sample(&folder.join("test.txt"), false, 10).unwrap();
        assert_eq!(sample.texts(), ["c"], "a file is what it is");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
