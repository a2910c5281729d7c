//! Texts of a data set as calibration shows them: each by itself, and those of one length together.

use std::collections::BTreeMap;

use attar::{CalibrationSample, Dataset, ImportRequest, Silent, Subject, import};
use attar_compress::Calibration;
use attar_graph::{Dim, Value};
use attar_tensor::{DType, Tensor};
use attar_tests::{Folder, data};

type Examples = BTreeMap<usize, Vec<Vec<i64>>>;

fn texts() -> Dataset {
    let words = ["an", "experimental", "study", "of", "the", "slipstream", "behind", "a", "wing"];
    let text = |index: usize| {
        let from = index * 7 % 5;
        words[from..from + 1 + index * 3 % 4].join(" ")
    };
    Dataset::Text((0..600).map(text).collect())
}

fn alone(sample: &CalibrationSample, inputs: &[Value]) -> Examples {
    let mut found = Examples::new();
    let shown = sample.for_each_batch(inputs, &mut |feeds| {
        let row = |(_, tensor): &(&str, &Tensor)| tensor.slice::<i64>().to_vec();
        found.insert(found.len(), feeds.iter().map(row).collect());
        Ok(())
    });
    shown.expect("the texts are read");
    found
}

/// The examples by their numbers, and how many times something was shown.
fn grouped(sample: &CalibrationSample, inputs: &[Value]) -> (Examples, usize) {
    let (mut found, mut count) = (Examples::new(), 0);
    let shown = sample.for_each_group(inputs, &mut |feeds, numbers| {
        count += 1;
        for (row, &number) in numbers.iter().enumerate() {
            let part = |(_, tensor): &(&str, &Tensor)| {
                let [rows, length] = *tensor.shape() else { panic!("{:?}", tensor.shape()) };
                assert_eq!(rows, numbers.len());
                tensor.slice::<i64>()[row * length..][..length].to_vec()
            };
            assert!(found.insert(number, feeds.iter().map(part).collect()).is_none(), "{number}");
        }
        Ok(())
    });
    shown.expect("the texts are read");
    (found, count)
}

#[test]
fn texts_of_one_length_together_are_the_texts_by_themselves() {
    let folder = Folder::new("calibration");
    let model = folder.join("minilm.onnx");
    let source = data("minilm");
    let request =
        ImportRequest { source: &source, architecture: None, pooling: true, output: &model };
    import(&request).expect("MiniLM imports");
    let subject = Subject::open(&model).expect("what was imported is read");
    let texts = texts();
    let sample = CalibrationSample::new(&texts, &subject, 555, &Silent).expect("it eats text");

    let inputs: Vec<Value> = subject.model.graph.inputs.clone();
    let expected = alone(&sample, &inputs);
    assert_eq!(expected.len(), 555);
    let (found, count) = grouped(&sample, &inputs);
    assert_eq!(found, expected);
    assert!(count < 100, "{count} runs");

    // A model that takes one text at a time gets one.
    let fixed: Vec<Value> = inputs
        .iter()
        .map(|input| {
            let length = input.shape().expect("it is known")[1].clone();
            Value::tensor(input.name.clone(), DType::I64, vec![Dim::Known(1), length])
        })
        .collect();
    assert_eq!(grouped(&sample, &fixed), (expected, 555));
}
