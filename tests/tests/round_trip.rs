//! A model that attar loads and saves is the same model: for the official Python package, message
//! by message, and for ONNX Runtime, bit by bit.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use attar_evaluate::Shape;
use attar_onnx::{SaveOptions, load, save};
use attar_runtime::{Ort, RunOptions};
use attar_tensor::Tensor;
use attar_tests::{Folder, data, data_folder, ort_library, python};

/// Every ONNX file below a folder, hidden folders excepted, in a fixed order.
fn models(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let mut found = Vec::new();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && !name.starts_with('.') && !name.ends_with("-venv") {
            found.extend(models(&path));
        } else if name.ends_with(".onnx") {
            found.push(path);
        }
    }
    found
}

#[test]
fn python_finds_every_model_of_the_data_folder_equal_to_its_copy() {
    data("node-tests");
    let folder = Folder::new("round-trip");
    let mut pairs = String::new();
    let mut count = 0;
    for (index, path) in models(&data_folder()).iter().enumerate() {
        let model = load(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let copy = folder.join(format!("{index}.onnx"));
        save(&model, &copy, &SaveOptions::default()).unwrap();
        pairs += &format!("{}\t{}\n", path.display(), copy.display());
        count += 1;
    }
    assert!(count > 1884, "{count} models are not all of the node tests and the real ones");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/round_trip.py");
    let mut command = Command::new(python());
    command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(pairs.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert_eq!(text.trim(), format!("{count} of {count} models are equal"));
}

#[test]
fn attars_messages_are_those_of_the_official_schema() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(python())
        .arg(tests.join("reference/schema.py"))
        .arg(tests.join("../crates/onnx/src/messages.rs"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let newest = (0..).take_while(|&code| code == 0 || attar_onnx::dtype_from_code(code).is_some());
    assert_eq!(text.trim(), format!("28 messages, {} element types", newest.count() - 1));
}

#[test]
fn onnx_runtime_computes_the_same_bits_from_a_model_and_its_copy() {
    let folder = Folder::new("round-trip-ort");
    let ort = Ort::find(Some(&ort_library())).unwrap();
    let jobs = attar_bench::jobs_of_data(&data_folder()).unwrap();
    assert!(jobs.len() >= 10, "only {} models are in the data folder", jobs.len());
    for (index, job) in jobs.iter().enumerate() {
        let copy = folder.join(format!("{index}.onnx"));
        let original = Path::new(&job.path);
        save(&load(original).unwrap(), &copy, &SaveOptions::default()).unwrap();
        let [first, second] = [original, &copy].map(|path| {
            let mut session = ort.load_file(path, &RunOptions::default()).unwrap();
            let shape = Shape { batch: 1, length: 16 };
            let feeds = attar_bench::Feed::all(session.inputs(), &job.feeds, shape).unwrap();
            let feeds: Vec<(&str, &Tensor)> =
                feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            session.run(&feeds).unwrap()
        });
        // Tensors are equal when their bits are.
        assert!(first == second, "{} gives other outputs once saved", job.path);
        assert!(!first.is_empty());
    }
}
