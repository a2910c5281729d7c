//! Finding ONNX Runtime's shared library, and loading it once.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::{env, fs, io};

use ::ort::environment::Environment;

use crate::RuntimeError;

/// A loaded library with its environment.
#[derive(Clone, Debug)]
pub(super) struct Library {
    pub(super) path: PathBuf,
    pub(super) environment: Environment,
}

/// ONNX Runtime's own rule, not ours: a process has one library and one environment, for good.
static LOADED: Mutex<Option<Library>> = Mutex::new(None);

impl Library {
    pub(super) fn find(path: Option<&Path>) -> Result<Self, RuntimeError> {
        if let Some(path) = path {
            return Self::open(path).map_err(|cause| not_found(&[tried(path, &cause)]));
        }
        let variable = env::var_os("ORT_DYLIB_PATH").filter(|value| !value.is_empty());
        if let Some(path) = variable.map(PathBuf::from) {
            let tried = |cause: String| format!("ORT_DYLIB_PATH names {}", tried(&path, &cause));
            return Self::open(&path).map_err(|cause| not_found(&[tried(cause)]));
        }
        let unset = "ORT_DYLIB_PATH is not set".to_string();
        match python_library() {
            Ok(path) => {
                Self::open(&path).map_err(|cause| not_found(&[unset, tried(&path, &cause)]))
            }
            Err(cause) => Err(not_found(&[unset, cause])),
        }
    }

    fn open(path: &Path) -> Result<Self, String> {
        // The bindings read a relative path from the folder of the program.
        let path = path.canonicalize().map_err(|error| error.to_string())?;
        if !path.is_file() {
            return Err("it is not a file".into());
        }
        let bytes = attar_tensor::map_file(&path).map_err(|error| error.to_string())?;
        if is_cut_short(&bytes) {
            return Err("the file is cut short".into());
        }
        // A panic elsewhere leaves either no library or a whole one.
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = &*loaded {
            if library.path == path {
                return Ok(library.clone());
            }
            let other = library.path.display();
            return Err(format!("`{other}` is loaded, and one process can use one library"));
        }
        let builder = ::ort::init_from(&path).map_err(|error| error.to_string())?;
        let environment = builder.with_name("attar").with_telemetry(false).build();
        let environment = environment.map_err(|error| error.to_string())?;
        Ok(loaded.insert(Self { path, environment }).clone())
    }

    /// The bindings do not tell the version, so it is read from the library: its symbols carry it.
    pub(super) fn version(&self) -> String {
        let bytes = attar_tensor::map_file(&self.path).unwrap_or_default();
        let name = self.path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        version_after(b"VERS_", &bytes)
            .or_else(|| version_after(b".so.", name.as_bytes()))
            .or_else(|| version_after(b"onnxruntime.", name.as_bytes()))
            .unwrap_or_else(|| ::ort::info().into())
    }
}

/// Whether an ELF file ends before what its program headers say is in it. The dynamic linker does
/// not look: it maps such a file, and the process dies on touching what is not there. Other
/// formats are left to their linkers.
fn is_cut_short(bytes: &[u8]) -> bool {
    const LOAD: usize = 1;
    let number = |start: usize, size: usize| -> Option<usize> {
        let field = bytes.get(start..start.checked_add(size)?)?;
        field
            .iter()
            .rev()
            .try_fold(0_usize, |sum, &byte| Some(sum.checked_mul(256)? + byte as usize))
    };
    // 64 bits, little-endian.
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let segment_ends = || {
        let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
        for index in 0..count {
            let header = table.checked_add(index * size)?;
            let at = |offset: usize, size| number(header.checked_add(offset)?, size);
            let end = at(8, 8)?.checked_add(at(32, 8)?)?;
            if at(0, 4)? == LOAD && end > bytes.len() {
                return None;
            }
        }
        Some(())
    };
    segment_ends().is_none()
}

/// The first `1.2.3` that follows `mark`.
fn version_after(mark: &[u8], text: &[u8]) -> Option<String> {
    let starts = text.windows(mark.len()).enumerate().filter(|(_, window)| *window == mark);
    starts.map(|(index, _)| &text[index + mark.len()..]).find_map(|rest| {
        let end = rest.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.');
        let version = std::str::from_utf8(&rest[..end.unwrap_or(rest.len())]).ok()?;
        let version = version.trim_end_matches('.');
        (version.split('.').filter(|part| !part.is_empty()).count() == 3).then(|| version.into())
    })
}

fn tried(path: &Path, cause: &str) -> String {
    format!("`{}`: {cause}", path.display())
}

fn not_found(tried: &[String]) -> RuntimeError {
    RuntimeError::OrtNotFound { tried: tried.join("; ") }
}

/// Prints where the package is without running it. The current folder is not asked: whoever made
/// the files in it could have the program load a library of theirs.
const WHERE_IS_THE_PACKAGE: &str = "import sys; sys.path[:] = [p for p in sys.path if p]
import importlib.util; s = importlib.util.find_spec('onnxruntime')
print(s.origin if s and s.origin else '')";

fn python_library() -> Result<PathBuf, String> {
    let output = Command::new("python3")
        .args(["-c", WHERE_IS_THE_PACKAGE])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("python3: {error}"))?;
    let origin = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let package = Path::new(&origin).parent().filter(|_| output.status.success());
    let package = package.ok_or("python3 has no package onnxruntime")?;
    let folder = package.join("capi");
    library_in(&folder).ok_or_else(|| format!("no library in `{}`", folder.display()))
}

/// `libonnxruntime.so.1.22.0`, `libonnxruntime.1.22.0.dylib`, `onnxruntime.dll`.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let start = format!("{}onnxruntime.", env::consts::DLL_PREFIX);
    let is_library = |path: &PathBuf| {
        let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        name.starts_with(&start) && name.contains(env::consts::DLL_SUFFIX)
    };
    let entries = fs::read_dir(folder).ok()?.flatten();
    entries.map(|entry| entry.path()).filter(is_library).max()
}

/// A new folder, removed with what is in it.
pub(super) struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    pub(super) fn new() -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("attar-ort-{}-{count}", std::process::id()));
        // Fails if it is there already: it would be someone else's.
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_symbols_and_names() {
        let symbols = b"\0VERS_x\0VERS_1.32.0\0OrtGetApiBase";
        assert_eq!(version_after(b"VERS_", symbols), Some("1.32.0".into()));
        let name = b"libonnxruntime.so.1.22.1";
        assert_eq!(version_after(b".so.", name), Some("1.22.1".into()));
        let name = b"libonnxruntime.1.22.1.dylib";
        assert_eq!(version_after(b"onnxruntime.", name), Some("1.22.1".into()));
        assert_eq!(version_after(b".so.", b"libonnxruntime.so"), None);
        assert_eq!(version_after(b".so.", b"libonnxruntime.so.1"), None);
    }

    #[test]
    fn the_library_of_a_package_is_told_from_its_companions() {
        let folder = TemporaryFolder::new().unwrap();
        assert_eq!(library_in(folder.path()), None);
        let (prefix, suffix) = (env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
        for name in [
            format!("{prefix}onnxruntime_providers_shared{suffix}"),
            "onnxruntime_pybind11_state.cpython-311.so".into(),
            "__init__.py".into(),
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(library_in(folder.path()), None);
        let library = folder.path().join(format!("{prefix}onnxruntime{suffix}"));
        fs::write(&library, "").unwrap();
        assert_eq!(library_in(folder.path()), Some(library));
    }
}
