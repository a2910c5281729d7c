//! What is no ONNX Runtime library ends in an error. In a process of its own, which never loads
//! one: after that, other paths are refused without being opened.

use std::fs;
use std::path::Path;

use attar_runtime::{Ort, RuntimeError};

fn error_of(path: &Path) -> String {
    let error = Ort::find(Some(path)).expect_err("it is no library");
    assert!(matches!(error, RuntimeError::OrtNotFound { .. }));
    assert!(error.hint().is_some_and(|hint| hint.contains("--ort PATH")));
    error.to_string()
}

/// Headers of a 64-bit library with one segment to load, bytes 0 to 4096; the rest is missing.
fn elf() -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(64 + 56, 0);
    (bytes[0x10], bytes[0x12]) = (3, 62);
    (bytes[0x20], bytes[0x36], bytes[0x38]) = (64, 56, 1);
    (bytes[64], bytes[64 + 33]) = (1, 16);
    bytes
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

    // Cut off in its header, and before the end of its only segment: the linker would map the
    // second, and the process would die on reading it.
    let header = folder.join("header.so");
    fs::write(&header, &elf()[..20]).unwrap();
    assert!(error_of(&header).ends_with("the file is cut short"));
    let segment = folder.join("segment.so");
    fs::write(&segment, elf()).unwrap();
    assert!(error_of(&segment).ends_with("the file is cut short"));

    // A program, not a library.
    assert!(error_of(&std::env::current_exe().unwrap()).starts_with("no ONNX Runtime library"));

    fs::remove_dir_all(&folder).unwrap();
}
