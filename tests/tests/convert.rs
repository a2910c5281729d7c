//! `attar::convert`: real models of older operator sets, said in newer terms.

use std::path::Path;

use attar::{ConvertRequest, convert};
use attar_runtime::{Ort, RunOptions, Runtime};
use attar_tensor::Tensor;
use attar_tests::{Folder, data, numbers, ort_library};

fn request<'a>(model: &'a Path, output: &'a Path, opset: Option<i64>) -> ConvertRequest<'a> {
    ConvertRequest { model, output, opset, inline: false, external_data_min_bytes: None }
}

fn outputs_of(path: &Path, feed: &Tensor) -> Vec<f32> {
    let model = attar_onnx::load(path).expect("the model is read");
    let ort = Ort::find(Some(&ort_library())).expect("./test.sh fetches ONNX Runtime");
    let mut session = ort.load(&model, &RunOptions::default()).expect("ONNX Runtime takes it");
    let outputs = session.run(&[("x", feed)]).expect("the feed fits");
    outputs[0].to_f32().expect("an output holds numbers")
}

#[test]
fn converted_models_give_what_the_originals_gave() {
    for (name, before, shape) in [
        ("rapidocr/ch_ppocr_mobile_v2.0_cls_infer.onnx", 11, [1, 3, 48, 192]),
        ("rapidocr/ch_PP-OCRv4_rec_infer.onnx", 12, [2, 3, 48, 96]),
    ] {
        let folder = Folder::new(&format!("convert-{before}"));
        let (model, path) = (data(name), folder.join("model.onnx"));
        let outcome = convert(&request(&model, &path, Some(21))).unwrap();
        assert_eq!((outcome.opset_before, outcome.opset), (before, 21), "{name}");
        let feed = Tensor::new(&shape, &numbers(shape.iter().product(), 5));
        let (expected, found) = (outputs_of(&model, &feed), outputs_of(&path, &feed));
        assert_eq!(expected.len(), found.len(), "{name}");
        // Probabilities; ONNX Runtime sums in another order where a node has another form.
        let worst = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-5, "{name}: {worst}");
    }
}

#[test]
fn without_options_the_file_says_the_same() {
    let folder = Folder::new("convert-same");
    let model = data("rapidocr/ch_ppocr_mobile_v2.0_cls_infer.onnx");
    let path = folder.join("model.onnx");
    convert(&request(&model, &path, None)).unwrap();
    assert_eq!(attar_onnx::load(&model).unwrap(), attar_onnx::load(&path).unwrap());
}

#[test]
fn an_older_operator_set_is_refused_with_the_range() {
    let folder = Folder::new("convert-older");
    let model = data("rapidocr/ch_ppocr_mobile_v2.0_cls_infer.onnx");
    let path = folder.join("model.onnx");
    let error = convert(&request(&model, &path, Some(9))).unwrap_err();
    assert!(error.chain().contains("only upward, not to 9"), "{}", error.chain());
    assert_eq!(error.hint().unwrap(), "give `--opset` a number from 11 to 28");
    assert!(!path.exists());
}
