//! The command line on a real model: what it prints, writes and exits with.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use attar_tests::{data, ort_library};

/// A folder of one test, removed when it ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("attar-cli-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// A retrieval set of twelve documents.
    fn retrieval(&self) -> String {
        let topics = ["a cat sleeps on the sofa", "stocks fell in early trading", "bread is baked"];
        let (mut corpus, mut queries) = (String::new(), String::new());
        let mut qrels = String::from("query-id\tcorpus-id\tscore\n");
        for index in 0..12 {
            let text = format!("{} and so it goes on for document {index}", topics[index % 3]);
            corpus.push_str(&format!("{{\"_id\": \"d{index}\", \"text\": \"{text}\"}}\n"));
        }
        for (index, query) in ["sleeping cat", "stock market", "baking"].iter().enumerate() {
            queries.push_str(&format!("{{\"_id\": \"q{index}\", \"text\": \"{query}\"}}\n"));
            qrels.push_str(&format!("q{index}\td{index}\t1\n"));
        }
        let folder = self.0.join("beir");
        std::fs::create_dir_all(folder.join("qrels")).unwrap();
        std::fs::write(folder.join("corpus.jsonl"), corpus).unwrap();
        std::fs::write(folder.join("queries.jsonl"), queries).unwrap();
        std::fs::write(folder.join("qrels/test.tsv"), qrels).unwrap();
        folder.display().to_string()
    }

    fn minilm(&self) -> String {
        let output = self.path("m/minilm.onnx");
        let folder = data("minilm").display().to_string();
        assert!(attar(&["import", &folder, "-o", &output]).status.success());
        output
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn attar(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_attar"))
        .args(arguments)
        .env("ORT_DYLIB_PATH", ort_library())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_model_is_imported_compressed_measured_and_served_from_its_run_folder() {
    let folder = Folder::new("whole");
    let (model, beir, run) = (folder.minilm(), folder.retrieval(), folder.path("run"));
    let arguments = ["compress", &model, "--step", "quantize.static", "--calibration", &beir];
    let more = ["--data", &beir, "--length", "16", "-o", &run, "--json"];
    let output = attar(&[&arguments[..], &more].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for file in ["model.onnx", "attar.toml", "tokenizer.json", "recipe.toml", "journal.jsonl"] {
        assert!(Path::new(&run).join(file).exists(), "{file}");
    }
    let text = stdout(&output);
    let written = std::fs::read_to_string(Path::new(&run).join("report.json")).unwrap();
    assert_eq!(text.trim(), written.trim());
    assert!(!Path::new(&run).join("checkpoints").exists());
    let size = std::fs::metadata(Path::new(&run).join("model.onnx")).unwrap().len();
    assert!(size < 24_000_000, "{size}");
    // Every text embedded alone has the vector it has in a batch.
    for runtime in ["builtin", "ort"] {
        let arguments = ["evaluate", &model, &run, "--data", &beir, "--runtime", runtime];
        let text = stdout(&attar(&[&arguments[..], &["--invariance", "15"]].concat()));
        assert_eq!(text.matches("15/15").count(), 2, "{text}");
        assert!(text.contains("nDCG@10"), "{text}");
    }
}

#[test]
fn calibration_texts_of_another_kind_are_told() {
    let folder = Folder::new("register");
    let (model, beir) = (folder.minilm(), folder.retrieval());
    let other = folder.path("other.txt");
    std::fs::write(&other, "x = y + 1;\nreturn z[4];\nint i;\nif (a < b) {\n".repeat(3)).unwrap();
    let told = |calibration: &str, name: &str| {
        let run = folder.path(name);
        let arguments = ["compress", &model, "--step", "cleanup", "--no-timing", "-o", &run];
        let data = ["--calibration", calibration, "--data", &beir];
        let output = attar(&[&arguments[..], &data].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output).contains("of another kind")
    };
    assert!(told(&other, "a"));
    assert!(!told(&beir, "b"));
}

#[test]
fn a_missed_budget_exits_with_1_and_a_second_run_is_refused() {
    let folder = Folder::new("budget");
    let (model, run) = (folder.minilm(), folder.path("run"));
    let arguments = ["compress", &model, "--step", "cleanup", "--length", "8", "-o", &run];
    let budget = ["--budget", "size_ratio_max=0.5"];
    let output = attar(&[&arguments[..], &budget].concat());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stdout(&output).contains("budget size_ratio_max 0.5: "), "{}", stdout(&output));
    assert!(stdout(&output).contains("MISSED"));
    let again = attar(&arguments);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("holds a finished run"), "{}", stderr(&again));
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let folder = Folder::new("dry");
    let model = folder.minilm();
    let before = std::fs::read_dir(&folder.0).unwrap().count();
    let output = attar(&["compress", &model, "--step", "prune.magnitude:sparsity=0.5"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    assert!(
        text.contains("  set encoder.layer.0.attention.self.query.weight f32[384, 384]"),
        "{text}"
    );
    assert!(text.contains("step 1 prune.magnitude: 36 edits"), "{text}");
    assert!(text.ends_with("nothing written; give `-o DIR` to compress\n"), "{text}");
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), before);
}

#[test]
fn inspect_counts_parameters_and_operations() {
    let folder = Folder::new("inspect");
    let output = attar(&["inspect", &folder.minilm(), "--json", "--size", "sequence=64"]);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["parameter_count"], 22_565_384);
    assert_eq!(answer["sizes"]["sequence"], 64);
    // 6 layers of 4·384² + 2·384·1536 per token, and two products of 64·384 per head row.
    let per_token = 6 * (4 * 384 * 384 + 2 * 384 * 1536 + 2 * 64 * 384);
    // Pooling multiplies two rows with the tokens.
    assert_eq!(answer["macs"], 64 * per_token + 2 * 64 * 384);
}

#[test]
fn errors_name_the_place_and_the_next_step() {
    let folder = Folder::new("errors");
    let model = folder.minilm();
    let bytes = std::fs::read(&model).unwrap();
    let broken = folder.path("broken.onnx");
    std::fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
    let cases: &[(&[&str], &str, &str)] = &[
        (&["inspect", "nosuch.onnx"], "nosuch.onnx", ""),
        (&["inspect", &broken], "broken.onnx", "hint: "),
        (
            &["compress", &model, "--step", "quantise"],
            "no pass is called `quantise`",
            "attar passes",
        ),
        (
            &["compress", &model, "--step", "prune.magnitude:sparsity=2"],
            "2 is not between 0 and 1",
            "sparsity, scope",
        ),
        (
            &["compress", &model, "--step", "quantize.static"],
            "it needs calibration data",
            "--calibration PATH",
        ),
        (
            &["compress", &model, "--step", "cleanup:exclude=nothing"],
            "`nothing` matches no node",
            "attar inspect",
        ),
        (&["evaluate", &model, "--data", "/dev/null/x"], "error: ", ""),
        (&["bench", &model, "--runtime", "fast"], "no runtime `fast`", "builtin and ort"),
        (&["bench", &model, "--seconds", "nan"], "from 0 to 3600", ""),
        (&["inspect", &model, "--size", "nosuch=3"], "no dimension is called `nosuch`", "batch"),
    ];
    for (arguments, cause, hint) in cases {
        let output = attar(arguments);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(cause) && text.contains(hint), "{arguments:?}: {text}");
        assert!(stdout(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_failed_first_step_leaves_no_run_folder() {
    let folder = Folder::new("failed");
    let (model, run) = (folder.minilm(), folder.path("run"));
    let output = attar(&["compress", &model, "--step", "quantize.static", "-o", &run]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!Path::new(&run).exists());
}

#[test]
fn the_tables_of_passes_and_operators_are_whole() {
    let passes = stdout(&attar(&["passes"]));
    for entry in ["cleanup", "fuse.batch-norm", "prune.magnitude", "quantize.dynamic"] {
        assert!(passes.contains(entry), "{passes}");
    }
    let operators: serde_json::Value =
        serde_json::from_str(&stdout(&attar(&["operators", "--json"]))).unwrap();
    assert!(operators.as_array().unwrap().len() > 60);
}

#[test]
fn wordnet_becomes_a_retrieval_set_and_other_folders_are_left_alone() {
    let folder = Folder::new("wordnet");
    let (source, output) = (data("wordnet").display().to_string(), folder.path("set"));
    let arguments = ["prepare", "wordnet", &source, "-o", &output, "--queries", "50"];
    let first = attar(&[&arguments[..], &["--documents", "100"]].concat());
    assert!(first.status.success(), "{}", stderr(&first));
    let corpus = std::fs::read(Path::new(&output).join("corpus.jsonl")).unwrap();
    assert!(attar(&[&arguments[..], &["--documents", "100"]].concat()).status.success());
    assert_eq!(std::fs::read(Path::new(&output).join("corpus.jsonl")).unwrap(), corpus);
    std::fs::write(Path::new(&output).join("mine.txt"), "precious").unwrap();
    let refused = attar(&arguments);
    assert_eq!(refused.status.code(), Some(2));
    assert!(Path::new(&output).join("mine.txt").exists());
}

/// Rows of f32 in an `.npy` file.
fn npy(path: &str, rows: usize, width: usize, value: impl Fn(usize) -> f32) {
    let header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    let header = format!("{header:<117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..rows * width).flat_map(|i| value(i).to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_stream_is_quantized_with_its_states_and_measured_as_one() {
    let folder = Folder::new("stream");
    let (model, frames) = (folder.path("model.onnx"), folder.path("frames.npy"));
    std::fs::copy(data("akiki/akiki-vad.onnx"), &model).unwrap();
    // A tone that comes and goes.
    let sample = |i: usize| {
        let time = (i / 576 * 512 + i % 576) as f32 / 16_000.0;
        0.2 * (time * 900.0).sin() * (time * 6.0).sin().max(0.0)
    };
    npy(&frames, 40, 576, sample);
    let settings = |text: &str| std::fs::write(folder.path("attar.toml"), text).unwrap();
    settings("output = \"probability\"\n[states]\nh = \"h_out\"\n");
    let run = folder.path("run");
    let compress = [
        "compress",
        &model,
        "--step",
        "cleanup",
        "--step",
        "quantize.static",
        "--calibration",
        &frames,
        "--data",
        &frames,
        "--no-timing",
        "-o",
        &run,
    ];
    let output = attar(&compress);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("1 recurrent layers in 8 bits"), "{text}");
    assert!(text.contains("by quarters of the examples"), "{text}");
    let kept = std::fs::read_to_string(Path::new(&run).join("attar.toml")).unwrap();
    assert!(kept.contains("h = \"h_out\""), "{kept}");
    settings("output = \"probability\"\n[states]\nh = \"hidden\"\n");
    let output = attar(&["evaluate", &model, "--data", &frames]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("`hidden`"), "{}", stderr(&output));
    settings("output = \"probability\"\n[states]\nh = 3\n");
    let output = attar(&["evaluate", &model, "--data", &frames]);
    assert!(stderr(&output).contains("line 3"), "{}", stderr(&output));
}
