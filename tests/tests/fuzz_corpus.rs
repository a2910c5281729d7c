//! What fuzzing found worth keeping, and what it broke once, is met again in the ordinary tests.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::path::{Path, PathBuf};

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is a library to the programs of `fuzz`")]
mod targets;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_input_of_the_corpus_gets_an_answer() {
    for (name, target) in targets::TARGETS {
        let files = files(&folder().join("corpus").join(name));
        assert!(!files.is_empty(), "{name} has no corpus");
        for file in files {
            let input = std::fs::read(&file).unwrap();
            let answer = std::panic::catch_unwind(|| target(&input));
            assert!(answer.is_ok(), "{name} panics on {}", file.display());
        }
    }
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let names: Vec<&str> = targets::TARGETS.iter().map(|target| target.0).collect();
    for part in ["corpus", "fuzz_targets"] {
        let stem = |file: PathBuf| file.file_stem().unwrap().to_str().unwrap().to_string();
        let found: Vec<String> = files(&folder().join(part)).into_iter().map(stem).collect();
        assert_eq!(found, names, "fuzz/{part}");
    }
}
