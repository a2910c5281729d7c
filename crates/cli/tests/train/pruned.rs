//! Pruning while training, and what `attar sensitivity` tells of a trained model.

use std::path::Path;

use super::fixtures::{Folder, attar, metric, stderr, stdout, trained};

fn learned(folder: &Folder, more: &[&str]) -> (String, String, serde_json::Value) {
    let options = ["--features", "8", "--hidden", "16", "--classes", "2"];
    let (model, data) = (folder.model("mlp", "mlp", &options), folder.points("set", 200, true));
    let run = folder.path("run");
    let common = ["--data", &data, "--validation", "0.25", "--epochs", "20", "--batch", "16"];
    let rate = ["--learning-rate", "0.02", "-o", &run];
    let answer = trained(&[&[model.as_str()], &common[..], &rate, more].concat());
    (run, data, answer)
}

#[test]
fn a_model_is_pruned_while_it_learns() {
    let folder = Folder::new("gradual");
    let (_, _, answer) = learned(
        &folder,
        &["--prune-to", "0.75", "--prune-importance", "movement", "--prune-every", "5"],
    );
    let counts: Vec<u64> = serde_json::from_value(answer["pruned_counts"].clone()).unwrap();
    assert_eq!(counts[0], counts[1] * 3 / 4, "{answer}");
    assert!(metric(&answer, 1) > 0.85, "{answer}");
}

#[test]
fn pruning_that_cannot_be_is_told_before_training() {
    let folder = Folder::new("gradual-wrong");
    let options = ["--features", "8", "--hidden", "8", "--classes", "2"];
    let (model, data) = (folder.model("mlp", "mlp", &options), folder.points("set", 40, true));
    let error = |more: &[&str]| {
        let run = folder.path("run");
        let common = ["train", &model, "--data", &data, "--epochs", "1", "-o", &run];
        let output = attar(&[&common[..], more].concat());
        assert_eq!(output.status.code(), Some(2));
        stderr(&output)
    };
    assert!(error(&["--prune-to", "1.2"]).contains("`sparsity` is from 0"));
    let unknown = error(&["--prune-to", "0.5", "--prune-importance", "size"]);
    assert!(unknown.contains("there are l1, relative, taylor, movement, random"), "{unknown}");
    assert!(
        error(&["--prune-to", "0.5", "--prune-end", "500"]).contains("pruning ends at step 500")
    );
    assert!(error(&["--prune-regrow", "0.1"]).contains("--prune-to"));
}

#[test]
fn sensitivity_is_told_drawn_and_read_by_a_recipe() {
    let folder = Folder::new("sensitivity");
    let (run, data, _) = learned(&folder, &[]);
    let svg = folder.path("map.svg");
    let output = attar(&[
        "sensitivity",
        &run,
        "--data",
        &data,
        "--svg",
        &svg,
        "--measure",
        "0.5,0.9",
        "--metric",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for heading in ["lost at 0.3", "output at 0.9", "change of accuracy"] {
        assert!(text.contains(heading), "{text}");
    }
    assert!(std::fs::read_to_string(&svg).unwrap().ends_with("</svg>\n"));
    let output =
        attar(&["sensitivity", &run, "--data", &data, "--json", "--importance", "taylor2"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let tensors = found["tensors"].as_array().unwrap();
    assert!(tensors.len() >= 2, "{found}");
    for tensor in tensors {
        let errors = tensor["levels"].as_array().unwrap().iter();
        let errors: Vec<f64> =
            errors.map(|level| level["error"]["value"].as_f64().unwrap()).collect();
        assert!(errors.windows(2).all(|pair| pair[0] <= pair[1]), "{errors:?}");
    }
    let json = folder.write("found.json", &output.stdout);
    let step = format!("prune.unstructured:sparsity=0.5,sensitivity={json}");
    let result = folder.path("pruned");
    let output = attar(&["compress", &run, "--step", &step, "-o", &result, "--no-timing"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("(50.0 %)") || stdout(&output).contains("(49."),
        "{}",
        stdout(&output)
    );
    assert!(Path::new(&result).join("model.onnx").exists());
    let other = folder.write("other.json", "{\"tensors\": []}");
    let step = format!("prune.unstructured:sparsity=0.5,sensitivity={other}");
    let output = attar(&["compress", &run, "--step", &step]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("is not in it"), "{}", stderr(&output));
    let step = "prune.unstructured:sensitivity=nowhere.json";
    let output = attar(&["compress", &run, "--step", step]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("nowhere.json"), "{}", stderr(&output));
}

#[test]
fn a_cut_model_is_told_of_by_step_and_by_layer() {
    let folder = Folder::new("cut");
    let (run, data, _) = learned(&folder, &[]);
    let result = folder.path("cut");
    let cut = "prune.channels:sparsity=0.5,importance=second-order,scope=global,ridge=0.01";
    // The clock would decide by microseconds here.
    let step = &format!("{cut},timed=false");
    let compress = ["compress", &run, "--step", step, "--calibration", &data, "--data", &data];
    let output =
        attar(&[&compress[..], &["--step", "cleanup", "--measure-steps", "-o", &result]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in ["multiply-accumulates (", "as fast as the original", "ms on builtin"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let report = std::fs::read(Path::new(&result).join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let [cut, after] = [&report["steps"][0], &report["steps"][1]];
    let count = |step: &serde_json::Value, key: &str| step[key]["macs"].as_u64().unwrap();
    assert!(count(cut, "work") < count(cut, "work_before"), "{cut}");
    assert_eq!(count(after, "work_before"), count(cut, "work"));
    let layers = cut["layers"].as_array().unwrap();
    let sum = |key: &str| -> u64 { layers.iter().map(|layer| count(layer, key)).sum() };
    let gone = count(cut, "work_before") - count(cut, "work");
    assert_eq!(sum("before") - sum("after"), gone, "the layers are all that changed");
    let quality = &report["quality"]["models"][1]["metrics"][0];
    let metric = &after["measures"]["metric"];
    assert_eq!(metric["value"], quality["interval"]["value"], "the last step leaves the result");
    let output = attar(&["bench", &run, &result, "--by-node", "--seconds", "0", "--json"]);
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = rows.as_array().unwrap();
    assert!(rows.iter().all(|row| row["ms"].as_array().unwrap().len() == 2), "{rows:?}");
    for layer in layers {
        assert!(rows.iter().any(|row| row["node"] == layer["node"]), "{layer}");
    }
}

#[test]
fn fewer_bits_and_their_times_are_told() {
    let folder = Folder::new("sensitivity-bits");
    let (run, data, _) = learned(&folder, &[]);
    let quantize = ["sensitivity", &run, "--data", &data, "--quantize"];
    let output = attar(&quantize);
    assert!(output.status.success(), "{}", stderr(&output));
    for heading in ["lost at 4 bits", "ms in float", "ms by quantize.static"] {
        assert!(stdout(&output).contains(heading), "{}", stdout(&output));
    }
    let output = attar(&[&quantize[..], &["--json"]].concat());
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (tensors, times) = (found["tensors"].as_array(), found["times"].as_array());
    assert_eq!(tensors.map(Vec::len), times.map(Vec::len), "{found}");
    let time = &times.unwrap()[0];
    assert!(time["float_ms"].as_f64() > Some(0.0) && time["integer_ms"].as_f64() > Some(0.0));
    let output = attar(&[&quantize[..], &["--by", "group"]].concat());
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn sensitivity_of_groups_chooses_how_much_of_each_is_cut() {
    let folder = Folder::new("sensitivity-groups");
    let (run, data, _) = learned(&folder, &[]);
    let svg = folder.path("map.svg");
    let by_group = ["sensitivity", &run, "--data", &data, "--by", "group"];
    let output = attar(&[&by_group[..], &["--svg", &svg, "--measure", "0.5"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    for heading in ["group", "channels", "lost at 0.3", "output at 0.5"] {
        assert!(stdout(&output).contains(heading), "{}", stdout(&output));
    }
    assert!(std::fs::read_to_string(&svg).unwrap().ends_with("</svg>\n"));
    let output = attar(&[&by_group[..], &["--json"]].concat());
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!found["groups"].as_array().unwrap().is_empty(), "{found}");
    assert!(found.get("tensors").is_none(), "{found}");
    let json = folder.write("groups.json", &output.stdout);
    let step = format!("prune.channels:sparsity=0.5,sensitivity={json}");
    let result = folder.path("cut");
    let output = attar(&["compress", &run, "--step", &step, "-o", &result, "--no-timing"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains(" cut, in "), "{}", stdout(&output));
    let other = folder.write("other.json", "{\"tensors\": []}");
    let step = format!("prune.channels:sparsity=0.5,sensitivity={other}");
    let output = attar(&["compress", &run, "--step", &step]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--by group"), "{}", stderr(&output));
}
