//! `attar new`: what it writes loads and runs, on both runtimes alike.
#![allow(clippy::unwrap_used)] // a test may fail where it stands

use std::num::NonZeroUsize;

use attar::{ARCHITECTURES, NewRequest, load, new_model};
use attar_bench::difference;
use attar_evaluate::{Shape, synthetic_feeds};
use attar_runtime::{Builtin, Ort, RunOptions, Runtime};
use attar_tensor::Tensor;
use attar_tests::{Folder, ort_library};

/// Architectures with options that change their graphs.
const VARIANTS: &[(&str, &[(&str, &str)])] = &[
    ("bert", &[("layers", "2"), ("hidden", "32"), ("heads", "4"), ("ffn", "64"), ("types", "2")]),
    (
        "bert",
        &[
            ("layers", "1"),
            ("hidden", "24"),
            ("heads", "2"),
            ("head", "classifier"),
            ("opset", "20"),
        ],
    ),
    ("bert", &[("layers", "1"), ("hidden", "24"), ("heads", "2"), ("pooling", "cls")]),
    ("bert", &[("layers", "1"), ("hidden", "24"), ("heads", "2"), ("head", "tokens")]),
    ("cnn", &[("widths", "8,16,24,32"), ("depth", "1"), ("channels", "3"), ("size", "33")]),
    ("gru", &[("layers", "2"), ("hidden", "20"), ("pooling", "last")]),
    ("gru", &[("bidirectional", "false"), ("pooling", "mean"), ("opset", "18")]),
    ("lenet", &[("size", "17"), ("channels", "3")]),
    ("lstm", &[("layers", "2"), ("hidden", "20"), ("bidirectional", "false")]),
    ("lstm", &[("layers", "3"), ("pooling", "last"), ("dropout", "0")]),
    ("mlp", &[("features", "9"), ("hidden", "7"), ("activation", "gelu")]),
    ("mobilenet_v2", &[("size", "64"), ("width", "0.35")]),
    ("mobilenet_v2", &[("size", "224"), ("width", "0.25"), ("classes", "1000")]),
    ("resnet", &[("depth", "18"), ("size", "96"), ("width", "0.25")]),
    ("resnet", &[("depth", "18"), ("width", "0.25"), ("channels", "1")]),
    ("resnet", &[("depth", "8"), ("size", "28"), ("width", "2")]),
    ("text-cnn", &[("windows", "1,2,12"), ("filters", "9")]),
    ("two-tower", &[("shared", "false"), ("hidden", "0")]),
    ("two-tower", &[("hidden", "40,30"), ("dropout", "0.1"), ("normalize", "false")]),
];

fn outputs(runtime: &dyn Runtime, file: &std::path::Path, batch: usize) -> Vec<Tensor> {
    let model = load(file).unwrap();
    let options = RunOptions { threads: NonZeroUsize::MIN, observed: Vec::new() };
    let mut session = runtime.load(&model, &options).unwrap();
    let inputs: Vec<_> = model.graph.inputs.clone();
    let mut feeds = synthetic_feeds(&inputs, Shape { batch, length: 11 }).unwrap();
    // The last text of the batch is shorter.
    for (name, tensor) in &mut feeds {
        if name.ends_with("attention_mask") {
            let count = tensor.element_count();
            tensor.slice_mut::<i64>()[count - 4..].fill(0);
        }
    }
    let feeds: Vec<(&str, &Tensor)> =
        feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    session.run(&feeds).unwrap()
}

#[test]
fn every_architecture_runs_on_both_runtimes_alike() {
    let ort = Ort::find(Some(&ort_library())).unwrap();
    let folder = Folder::new("new");
    let defaults = ARCHITECTURES.iter().map(|architecture| (architecture.name, &[][..]));
    for (index, (architecture, options)) in defaults.chain(VARIANTS.iter().copied()).enumerate() {
        let options: Vec<(String, String)> =
            options.iter().map(|&(key, value)| (key.into(), value.into())).collect();
        let output = folder.join(index.to_string()).join("model.onnx");
        let request =
            NewRequest { architecture, options: &options, tokenizer: None, output: &output };
        new_model(&request).unwrap();
        for batch in [1, 3] {
            let found = outputs(&Builtin, &output, batch);
            let expected = outputs(&ort, &output, batch);
            let apart = difference(&found, &expected);
            // Sums of up to 1280 products in f32, through up to 53 layers: 1e-4 of the largest.
            assert!(apart < 1e-4, "{architecture} {options:?}: {apart}");
            let values = found[0].to_f64().unwrap();
            assert!(values.iter().any(|x| x.abs() > 1e-6), "{architecture}: nothing comes out");
            assert!(values.iter().all(|x| x.abs() < 1e3), "{architecture}: {values:?}");
        }
    }
}
