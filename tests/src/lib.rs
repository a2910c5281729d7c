//! End-to-end tests: operators against ONNX Runtime, passes, and the command line on real models.
//!
//! `./test.sh` fetches what they need; without it they fail and say so.

use std::path::{Path, PathBuf};

/// The folder that `scripts/fetch` fills: `ATTAR_DATA`, or `data` at the root of the workspace.
pub fn data_folder() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
    std::env::var_os("ATTAR_DATA").map_or_else(default, PathBuf::from)
}

/// A fetched file or folder.
///
/// # Panics
/// When it is not there.
pub fn data(path: &str) -> PathBuf {
    let full = data_folder().join(path);
    assert!(full.exists(), "{path} is not in the data folder: run ./test.sh, which fetches it");
    full
}

/// The Python that `scripts/test-venv` sets up: it has the official `onnx` package.
///
/// # Panics
/// When it is not there.
pub fn python() -> PathBuf {
    let python = data("test-venv/bin/python");
    assert!(python.is_file(), "the Python of the tests is gone: run ./test.sh, which makes it");
    python
}

/// A new folder below that of temporary files; it goes when it is dropped.
///
/// A model and its `attar.toml` share a folder, so no model of a test may lie beside strangers.
pub struct Folder(PathBuf);

impl Folder {
    /// A folder of that name, of this process.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("attar-{name}-{}", std::process::id()));
        // What a killed process of the same number left.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the folder for tests is writable");
        Self(path)
    }

    /// The path of something in the folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What a failed removal leaves is a temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// ONNX Runtime's library: `ORT_DYLIB_PATH`, or the fetched one.
///
/// # Panics
/// When there is none.
pub fn ort_library() -> PathBuf {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH") {
        return path.into();
    }
    let folder = data("onnxruntime");
    let entries = std::fs::read_dir(&folder).expect("the folder is readable");
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let is_library = |path: &PathBuf| path.to_string_lossy().contains("libonnxruntime");
    files.into_iter().find(is_library).expect("the package holds the library: run ./test.sh")
}

/// Pseudo-random numbers of a normal-like spread, the same for the same seed.
pub fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 24) as f32
    };
    (0..count).map(|_| (uniform() + uniform() + uniform() - 1.5) * 2.0).collect()
}
