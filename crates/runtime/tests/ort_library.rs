//! What is no ONNX Runtime library ends in an error. In a process of its own, which never loads
//! one: after that, other paths are refused without being opened.

use std::fs;
use std::path::Path;

use attar_runtime::{Ort, RuntimeError};

fn error_of(path: &Path) -> String {
    let error = Ort::find(Some(path)).unwrap_err();
    assert!(matches!(error, RuntimeError::OrtNotFound { .. }));
    assert!(error.hint().unwrap().contains("--ort PATH"));
    error.to_string()
}

#[test]
fn a_wrong_path_is_an_error() {
    let folder = std::env::temp_dir().join(format!("attar-ort-library-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();

    let missing = folder.join("missing.so");
    assert!(error_of(&missing).contains(&format!("`{}`: ", missing.display())));

    assert!(error_of(&folder).ends_with("it is not a file"));

    let text = folder.join("text.so");
    fs::write(&text, "not a library").unwrap();
    assert!(error_of(&text).contains("text.so"));

    let empty = folder.join("empty.so");
    fs::write(&empty, "").unwrap();
    assert!(error_of(&empty).contains("empty.so"));

    let header = folder.join("header.so");
    fs::write(&header, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0").unwrap();
    assert!(error_of(&header).contains("header.so"));

    // A program, not a library.
    assert!(error_of(&std::env::current_exe().unwrap()).starts_with("no ONNX Runtime library"));

    fs::remove_dir_all(&folder).unwrap();
}
