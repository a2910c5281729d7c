//! Steps of a recipe that train a model as integers will run it.

use std::path::Path;

use crate::fixtures::{Folder, attar, metric, stderr, trained};

/// A convolutional classifier that has learned its images, and the images.
fn learned(folder: &Folder) -> (String, String) {
    let size = ["--channels", "1", "--size", "12", "--classes", "2"];
    let options = [&size[..], &["--widths", "8,8", "--depth", "1"]].concat();
    let (model, data) = (folder.model("cnn", "cnn", &options), folder.images(120));
    let run = folder.path("learned");
    let rest = ["--epochs", "4", "--batch", "16", "--learning-rate", "0.01", "-o", &run];
    trained(&[&[&model, "--data", &data], &rest[..]].concat());
    (run, data)
}

fn compressed(arguments: &[&str]) -> serde_json::Value {
    let output = attar(&[&["compress", "--json", "--no-timing"], arguments].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn coarse_weights_learn_and_the_file_holds_standard_integers() {
    let folder = Folder::new("aware");
    let (model, data) = learned(&folder);
    for (name, bits) in [("four", "weight_bits=4,activation_bits=4"), ("one", "weight_bits=binary")]
    {
        let step = format!("quantize.aware:{bits},epochs=4,batch=16,learning_rate=0.003");
        let run = folder.path(name);
        let common = [&model, "--training", &data, "--data", &data, "--step", &step];
        let answer = compressed(&[&common[..], &["-o", &run]].concat());
        assert!(metric(&answer, 1) > 0.95, "{bits}: {answer}");
        let step = &answer["steps"][0];
        assert_eq!(step["training"]["step_count"], 4 * 8, "{step}");
        let inspected = attar(&["inspect", &format!("{run}/model.onnx"), "--json"]);
        let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
        let text = inspected.to_string();
        assert!(!text.contains("FakeQuantize") && text.contains("DequantizeLinear"), "{bits}");
        assert!(step["weight_bytes"].as_u64() < step["weight_bytes_before"].as_u64(), "{step}");
    }
}

#[test]
fn without_epochs_it_quantizes_alone() {
    let folder = Folder::new("aware-alone");
    let (model, data) = learned(&folder);
    let run = folder.path("run");
    let step = "quantize.aware:epochs=0";
    let given = [&model, "--calibration", &data, "--data", &data, "--step", step, "-o", &run];
    let answer = compressed(&given);
    assert!(metric(&answer, 1) > 0.95, "{answer}");
    assert!(answer["steps"][0]["training"].is_null());
}

#[test]
fn what_is_wrong_with_the_settings_is_said() {
    let folder = Folder::new("aware-wrong");
    let (model, data) = learned(&folder);
    let run = folder.path("run");
    for (step, expected) in [
        ("quantize.aware:weight_bits=5", "5 bits are not supported"),
        ("quantize.aware:activation_bits=binary", "expected one of 16, 8, 4, 3, 2 and 32"),
        ("quantize.aware:wieght_bits=4", "unknown field `wieght_bits`"),
        ("quantize.aware:bits={\"no-such\"=4}", "`no-such` matches no product"),
        ("quantize.aware:freeze=2", "not between 0 and 1"),
    ] {
        let given = ["compress", &model, "--step", step, "--training", &data, "-o", &run];
        let output = attar(&given);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{step}: {message}");
        assert!(message.contains(expected), "{step}: {message}");
        assert!(!Path::new(&run).exists(), "{step} left a folder");
    }
}
