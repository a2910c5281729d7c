//! Tokens that leave a real model: the texts that need no other get the same vectors.

use attar::{
    CompressRequest, Dataset, Recipe, Shape, Silent, Step, Subject, TrainingData, compress,
};
use attar_evaluate::TextEncoder;
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::Tensor;
use attar_tests::{Folder, data};
use std::num::NonZeroUsize;
use std::path::Path;

const TEXTS: &[&str] = &[
    "a large flute played by a man",
    "the boundary layer of a supersonic flow over a flat plate",
    "unhappily, nobody recognized the photographs of 1987!",
    "naïve café — coöperation",
];

fn vectors(subject: &Subject) -> Vec<Vec<f32>> {
    let preprocessing = subject.preprocessing.as_ref().expect("it is a text model");
    let folder = subject.path.parent().expect("a file has a folder");
    let encoder = TextEncoder::new(preprocessing, folder).expect("the tokenizer is read");
    let mut session =
        Builtin.load(&subject.model, &RunOptions::default()).expect("the model loads");
    let inputs = session.inputs().to_vec();
    let encoded = encoder.encode(TEXTS).expect("texts are encoded");
    let vector = |encoded| {
        let feeds = encoder.feeds(&[encoded], &inputs).expect("inputs are those of text");
        let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
        session.run(&feeds).expect("the model runs")[0].values::<f32>().into_owned()
    };
    encoded.iter().map(vector).collect()
}

#[test]
fn texts_within_the_vocabulary_get_the_same_bits_and_the_model_is_smaller() {
    let folder = Folder::new("vocabulary");
    let model = folder.join("minilm.onnx");
    let request = attar::ImportRequest {
        source: &data("minilm"),
        architecture: None,
        pooling: true,
        output: &model,
    };
    attar::import(&request).expect("MiniLM imports");
    let original = Subject::open(&model).expect("what was imported is read");
    let before = vectors(&original);
    let texts = TEXTS.iter().map(ToString::to_string).collect();
    let training = TrainingData { train: Dataset::Text(texts), validation: None, bad_count: 0 };
    let output = folder.join("run");
    let outcome = compress(&CompressRequest {
        subject: original,
        recipe: Recipe {
            steps: vec![Step::parse("prune.vocabulary").expect("it is a step")],
            ..Recipe::default()
        },
        calibration: None,
        calibration_count: 1,
        data: None,
        training: Some((Path::new("texts"), training)),
        stop: std::sync::Arc::default(),
        runtimes: Vec::new(),
        threads: NonZeroUsize::MIN,
        is_timed: false,
        measures_steps: false,
        latency_threads: NonZeroUsize::MIN,
        shape: Shape { batch: 1, length: 16 },
        output: &output,
        resume: false,
        progress: &Silent,
    })
    .expect("tokens can be left out");
    let result = Subject::open(&output).expect("the result is read");
    assert_eq!(vectors(&result), before);
    // Nearly half of the model is its table of tokens, and few of them stay.
    assert!(outcome.size_bytes * 10 < outcome.size_bytes_before * 6, "{}", outcome.size_bytes);
}
