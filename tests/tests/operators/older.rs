//! Nodes of older operator sets, which are put into newer terms.

use attar_graph::AttributeValue;
use attar_tensor::Tensor;

use crate::case::*;

pub(crate) fn cases() -> Vec<Case> {
    let x = || ("x", f32s(&[2, 3, 4, 5]));
    let mut cases = Vec::new();
    for axis in [1, 2, 3, -1, 0] {
        for op in ["Softmax", "LogSoftmax", "Hardmax"] {
            let text = format!("y = {op}(x, axis={axis})");
            cases.push(case(text, vec![x()]).opset(11).within(2e-6));
        }
    }
    cases.extend([
        case("y = Clip(x, min=-0.5, max=0.7)", vec![x()]).opset(9).exact(),
        case("y = Pad(x, pads=0,1,0,2,0,0,3,0, value=0.5)", vec![x()]).opset(10).exact(),
        case("y = Slice(x, axes=1,3, starts=1,-3, ends=3,100)", vec![x()]).opset(9).exact(),
        case("y = Slice(x, starts=1, ends=2)", vec![x()]).opset(9).exact(),
        case("a, b = Split(x, split=1,3, axis=2)", vec![x()]).opset(11).exact(),
        case("a, b = Split(x, axis=2)", vec![x()]).opset(13).exact(),
        case("y = Unsqueeze(x, axes=0,2)", vec![x()]).opset(11).exact(),
        case("v, i = TopK(x, k=2, axis=3)", vec![x()]).opset(9).exact(),
        case("y = Dropout(x, ratio=0.3)", vec![x()]).opset(10).exact(),
        case("y = ReduceSum(x, axes=1,3)", vec![x()]).opset(11).within(1e-6),
        case("y = ReduceMax(x, axes=2, keepdims=0)", vec![x()]).opset(12).exact(),
    ]);
    let scales = Tensor::new(&[4], &[1.0_f32, 1.0, 2.0, 3.0]);
    for mode in ["nearest", "linear"] {
        let feeds = || vec![x(), ("s", scales.clone())];
        cases.push(case(format!("y = Resize(x, s, mode={mode})"), feeds()).opset(10).within(1e-6));
        cases.push(case(format!("y = Upsample(x, s, mode={mode})"), feeds()).opset(9).within(1e-6));
    }
    let indices = Tensor::new(&[1, 3], &[2_i64, 0, 1]);
    let feeds = vec![("x", f32s(&[3, 3])), ("i", indices), ("u", f32s(&[1, 3]))];
    cases.push(case("y = Scatter(x, i, u)", feeds).opset(10).exact());
    let statistics = |name| (name, positive(&[3]));
    let feeds = vec![x(), statistics("s"), statistics("b"), statistics("m"), statistics("v")];
    cases.push(case("y = BatchNormalization(x, s, b, m, v)", feeds).opset(8).within(1e-5));
    cases
}

/// The attribute of an older node that the text form has no way to write: floats.
#[test]
fn scales_of_upsample_7_are_read_from_the_attribute() {
    let case = case("y = Upsample(x, mode=nearest)", vec![("x", f32s(&[1, 2, 3, 4]))]).opset(7);
    let mut model = model_of(&case);
    let scales = AttributeValue::from(vec![1.0_f32, 1.0, 2.0, 2.0]);
    model.graph.nodes[0].attributes.insert("scales".into(), scales.into());
    let found = run(&attar_runtime::Builtin, &model, &case);
    let expected = run(&ort(), &model, &case);
    assert_eq!(found, expected);
}
