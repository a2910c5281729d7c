//! `attar new` on the command line: models and tokenizers, and what is wrong with a request.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::path::PathBuf;
use std::process::{Command, Output};

/// A folder of one test, removed when it ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("attar-new-cli-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn attar(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_attar")).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_architecture_is_listed_and_has_help() {
    let list = attar(&["new", "--list", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&stdout(&list)).unwrap();
    let names: Vec<&str> =
        rows.as_array().unwrap().iter().map(|row| row["architecture"].as_str().unwrap()).collect();
    assert!(names.contains(&"bert") && names.contains(&"two-tower"), "{names:?}");
    let text = stdout(&attar(&["new", "--list"]));
    for name in names {
        assert!(text.contains(&format!("\n{name}\n")) || text.starts_with(name), "{name}");
        let help = attar(&["new", name, "--help"]);
        assert!(help.status.success() && stdout(&help).contains("--seed"), "{name}");
    }
}

#[test]
fn the_same_request_writes_the_same_bytes() {
    let folder = Folder::new("same");
    let made = |name: &str, seed: &str| {
        let file = folder.path(&format!("{name}/model.onnx"));
        let output = attar(&["new", "lenet", "--seed", seed, "--mean", "0.286", "-o", &file]);
        assert!(output.status.success(), "{}", stderr(&output));
        (std::fs::read(&file).unwrap(), stdout(&output))
    };
    let (first, text) = made("a", "3");
    assert!(text.contains("61.7 k parameters") && text.contains("logits"), "{text}");
    assert_eq!(made("b", "3").0, first);
    assert_ne!(made("c", "4").0, first);
    let toml = std::fs::read_to_string(folder.path("a/attar.toml")).unwrap();
    assert!(toml.contains("size = 28") && toml.contains("0.286"), "{toml}");
}

#[test]
fn a_tokenizer_is_made_from_texts_and_says_the_vocabulary_of_a_model() {
    let folder = Folder::new("tokenizer");
    let texts = folder.path("texts.txt");
    std::fs::write(&texts, "the cat sleeps\nthe dog sleeps\na cat and a dog\n").unwrap();
    for (kind, count) in [("wordlevel", 8), ("wordpiece", 41)] {
        let file = folder.path(&format!("{kind}.json"));
        let arguments = ["new", "tokenizer", "--kind", kind, "--data", &texts, "-o", &file];
        let output = attar(&[&arguments[..], &["--count-min", "1", "--json"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let made: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(made["token_count"], count, "{made}");
        let model = folder.path(&format!("{kind}/model.onnx"));
        let arguments = ["new", "gru", "--hidden", "8", "--tokenizer", &file, "-o", &model];
        let output = attar(&[&arguments[..], &["--json"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(PathBuf::from(folder.path(&format!("{kind}/tokenizer.json"))).is_file());
        let toml = std::fs::read_to_string(folder.path(&format!("{kind}/attar.toml"))).unwrap();
        assert!(toml.contains("length_max = 128"), "{toml}");
        let small = [&arguments[..], &["--vocabulary", "3"]].concat();
        let message = stderr(&attar(&small));
        assert!(message.contains(&format!("has {count} tokens, the vocabulary 3")), "{message}");
    }
}

#[test]
fn what_is_wrong_is_said_with_the_next_step() {
    let folder = Folder::new("wrong");
    let file = folder.path("model.onnx");
    for (arguments, expected) in [
        (&["resnet", "--depth", "19"][..], "`depth` of resnet is `19`, expected 18, or 6n + 2"),
        (&["bert", "--hidden", "100"], "expected a multiple of the 12 heads"),
        (&["bart"], "unrecognized subcommand 'bart'"),
        (&["lstm", "--width", "2"], "unexpected argument '--width'"),
        (&["lstm", "--tokenizer", "none.json"], "tokenizer none.json"),
        (&["tokenizer", "--data", "none.txt"], "none.txt"),
    ] {
        let output = attar(&[&["new"], arguments, &["-o", &file]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
        assert!(!PathBuf::from(&file).exists());
    }
}
