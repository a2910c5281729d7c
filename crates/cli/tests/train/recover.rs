//! Steps of a recipe that train.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::fixtures::{Folder, attar, metric, stderr, trained};

/// A classifier that has learned its points, and the points.
fn learned(folder: &Folder) -> (String, String) {
    let options = ["--features", "8", "--hidden", "32", "--classes", "2"];
    let (model, data) = (folder.model("mlp", "mlp", &options), folder.points("set", 400, true));
    let run = folder.path("learned");
    let rest = ["--epochs", "20", "--batch", "16", "--learning-rate", "0.02", "-o", &run];
    trained(&[&[&model, "--data", &data], &rest[..]].concat());
    (run, data)
}

fn compressed(arguments: &[&str]) -> serde_json::Value {
    let output = attar(&[&["compress", "--json", "--no-timing"], arguments].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

const PRUNE: &str = "prune.magnitude:sparsity=0.9,scope=global";

#[test]
fn what_pruning_lost_is_won_back_from_the_original_or_from_labels_and_zeros_stay() {
    let folder = Folder::new("recover");
    let (model, data) = learned(&folder);
    let common = ["--data", &data, "--training", &data, "--step", PRUNE];
    let pruned = folder.path("pruned");
    let answer = compressed(&[&[&model, "-o", &pruned], &common[..]].concat());
    let lost = metric(&answer, 1);
    for targets in ["original", "labels", "both"] {
        let step = format!("recover:targets={targets},epochs=20,batch=16,learning_rate=0.02");
        let run = folder.path(targets);
        let arguments = [&[&model, "-o", &run][..], &common, &["--step", &step]].concat();
        let answer = compressed(&arguments);
        let found = metric(&answer, 1);
        assert!(found > lost + 0.05, "{targets}: {lost} {found}");
        let training = &answer["steps"][1]["training"];
        assert_eq!(training["step_count"], 20 * 25);
        let (first, last) = (&training["loss_first"], &training["loss_last"]);
        assert!(last.as_f64().unwrap() < first.as_f64().unwrap(), "{training}");
        // Another pruning to the same sparsity finds nothing to do.
        let again = attar(&["compress", &run, "--step", PRUNE, "--json"]);
        let again: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
        assert_eq!(again[0]["edit_count"], 0, "{targets}: zeros have come back");
    }
}

#[test]
fn a_stopped_recovery_goes_on_to_the_same_bytes() {
    let folder = Folder::new("recover-stopped");
    let (model, data) = learned(&folder);
    let step = "recover:epochs=300,batch=4,learning_rate=0.001";
    let arguments = |run: &str| {
        let given = ["compress", &model, "--step", PRUNE, "--step", step, "--training", &data];
        let rest = ["--no-timing", "-o", run];
        given.iter().chain(&rest).map(ToString::to_string).collect::<Vec<String>>()
    };
    let (whole, cut) = (folder.path("whole"), folder.path("cut"));
    let begun = arguments(&whole);
    assert!(attar(&begun.iter().map(String::as_str).collect::<Vec<_>>()).status.success());
    let mut command = Command::new(env!("CARGO_BIN_EXE_attar"));
    command.args(arguments(&cut)).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let journal = Path::new(&cut).join("checkpoints/training-2/journal.jsonl");
    let has_stepped =
        || std::fs::read_to_string(&journal).is_ok_and(|text| text.contains("\"event\":\"step\""));
    for _ in 0..600 {
        if has_stepped() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let stopped = child.wait_with_output().unwrap();
    let message = stderr(&stopped);
    assert_eq!(stopped.status.code(), Some(130), "{message}");
    assert!(message.contains("--resume"), "{message}");
    assert!(!Path::new(&cut).join("model.onnx").exists());
    let mut resumed = arguments(&cut);
    resumed.push("--resume".into());
    let resumed = attar(&resumed.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    let bytes = |run: &str| std::fs::read(Path::new(run).join("model.onnx")).unwrap();
    assert!(bytes(&whole) == bytes(&cut), "the resumed run has other weights");
}

#[test]
fn what_is_wrong_with_a_recovery_is_said() {
    let folder = Folder::new("recover-wrong");
    let (model, data) = learned(&folder);
    let run = folder.path("run");
    for (step, more, expected) in [
        ("recover", &[][..], "`--training SET`"),
        ("recover:epoch=3", &["--training", &data][..], "epochs, steps"),
        ("recover:loss=hinge", &["--training", &data][..], "hinge"),
        ("recover:features=[\"no-such\"]", &["--training", &data][..], "`no-such`"),
        ("recover:learning_rate=-1", &["--training", &data][..], "above 0"),
    ] {
        let output = attar(&[&["compress", &model, "--step", step, "-o", &run][..], more].concat());
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{step}: {message}");
        assert!(message.contains(expected), "{step}: {message}");
        assert!(!Path::new(&run).exists(), "{step} left a folder");
    }
}
