//! Softmax, normalization and reductions.

use crate::case::*;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [&[3, 5][..], &[2, 12, 7, 33], &[1, 1], &[4, 128], &[3, 0]] {
        for axis in [-1, 0] {
            let feeds = vec![("x", f32s(shape))];
            cases.push(case(format!("y = Softmax(x, axis={axis})"), feeds));
        }
        let last = shape[shape.len() - 1];
        if last > 0 {
            let feeds = vec![("x", f32s(shape)), ("s", f32s(&[last])), ("b", f32s(&[last]))];
            cases.push(case("y = LayerNormalization(x, s, b)", feeds.clone()).within(5e-6));
            let text = "y = LayerNormalization(x, s, epsilon=0.00001)";
            cases.push(case(text, feeds[..2].to_vec()).within(5e-6));
        }
        for op in ["ReduceSum", "ReduceMean", "ReduceL2", "ReduceMax", "ReduceMin"] {
            if last == 0 {
                continue;
            }
            for settings in ["", ", keepdims=0"] {
                let all = format!("y = {op}(x{settings})");
                cases.push(case(all, vec![("x", f32s(shape))]).within(1e-5));
                for axes in [&[-1][..], &[0], &[0, 1]] {
                    let feeds = vec![("x", f32s(shape)), ("a", i64s(axes))];
                    let text = format!("y = {op}(x, a{settings})");
                    cases.push(case(text, feeds).opset(18).within(1e-5));
                }
            }
        }
    }
    cases.push(
        case("y = ReduceMean(x, axes=1)", vec![("x", f32s(&[2, 3, 4]))]).opset(11).within(1e-6),
    );
    let feeds = vec![("x", f32s(&[2, 3, 4])), ("s", f32s(&[3, 4])), ("b", f32s(&[3, 4]))];
    cases.push(case("y = LayerNormalization(x, s, b, axis=1)", feeds).within(5e-6));
    cases
}
