//! The index of weights in several files: `model.safetensors.index.json` and its like.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::ImportError;
use crate::config::read_json;

#[derive(Deserialize)]
struct Index {
    /// From names of tensors to those of files.
    weight_map: BTreeMap<String, String>,
}

/// Each shard of `folder` that `index` names, and the tensors that it says are in it.
pub(super) fn read(
    folder: &Path,
    index: &Path,
) -> Result<BTreeMap<PathBuf, Vec<String>>, ImportError> {
    let parsed: Index = read_json(index)?;
    let malformed = |reason: String| ImportError::Malformed {
        file: index.into(),
        expected: "an index of weights",
        reason,
    };
    let mut shards: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for (tensor, file) in parsed.weight_map {
        let mut parts = Path::new(&file).components();
        let is_name = matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
        if !is_name {
            let reason = format!("`{tensor}` is in `{file}`, which is no file of this folder");
            return Err(malformed(reason));
        }
        shards.entry(folder.join(file)).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(malformed("its `weight_map` is empty".into()));
    }
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Weights;
    use crate::weights::testing::zip_file;

    /// A folder with two shards of `PyTorch`'s own format, each of one tensor; removed at the end.
    struct TestFolder(PathBuf);

    impl TestFolder {
        fn new(name: &str) -> Self {
            let folder = format!("attar-shards-{name}-{}", std::process::id());
            let folder = Self(std::env::temp_dir().join(folder));
            std::fs::create_dir_all(&folder.0).unwrap();
            for (file, tensor) in [("first.bin", "a"), ("second.bin", "b")] {
                let bytes = zip_file(tensor, &[1], &[1], 0, &1.5_f32.to_le_bytes());
                std::fs::write(folder.0.join(file), bytes).unwrap();
            }
            folder
        }

        fn open(&self, index: &str) -> Result<Weights, String> {
            std::fs::write(self.0.join("pytorch_model.bin.index.json"), index).unwrap();
            let own = format!("{}/", self.0.display());
            Weights::open_folder(&self.0).map_err(|error| error.to_string().replace(&own, ""))
        }

        fn error(&self, index: &str) -> String {
            self.open(index).err().expect("the index is broken")
        }
    }

    impl Drop for TestFolder {
        fn drop(&mut self) {
            // What a failed removal leaves is a temporary folder.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn shards_of_pickles_are_read_together() {
        let folder = TestFolder::new("whole");
        let index = r#"{"weight_map": {"a": "first.bin", "b": "second.bin"}}"#;
        let mut weights = folder.open(index).unwrap();
        for name in ["a", "b"] {
            let (_, tensor) = weights.take(name, &[1]).unwrap();
            assert_eq!(tensor.values::<f32>().as_ref(), [1.5]);
        }
    }

    #[test]
    fn an_index_that_lies_is_an_error() {
        let folder = TestFolder::new("broken");
        let swapped = r#"{"weight_map": {"a": "second.bin", "b": "first.bin"}}"#;
        assert_eq!(folder.error(swapped), "`first.bin` has no tensor `b`");
        let absent = r#"{"weight_map": {"a": "first.bin", "c": "first.bin"}}"#;
        assert_eq!(folder.error(absent), "`first.bin` has no tensor `c`");
        let gone = r#"{"weight_map": {"a": "third.bin"}}"#;
        assert!(folder.error(gone).starts_with("`third.bin`: "));
        assert!(folder.error(r#"{"weight_map": {}}"#).ends_with("its `weight_map` is empty"));
        assert!(folder.error("{}").contains("missing field `weight_map`"));
    }

    #[test]
    fn a_shard_stands_in_the_folder() {
        let folder = TestFolder::new("outside");
        for file in ["../first.bin", "/etc/hosts", "x/first.bin", "..", "."] {
            let error = folder.error(&format!(r#"{{"weight_map": {{"a": "{file}"}}}}"#));
            let expected = format!("`a` is in `{file}`, which is no file of this folder");
            assert!(error.ends_with(&expected), "{error}");
        }
    }
}
