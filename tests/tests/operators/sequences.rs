//! Sequences and optionals, between tensors.

use attar_graph::testing::graph_from_text;
use attar_graph::{Graph, ValueType};
use attar_tensor::{DType, Tensor};

use crate::case::*;

pub(crate) fn cases() -> Vec<Case> {
    let pair = || vec![("x", f32s(&[2, 3])), ("z", f32s(&[4, 3]))];
    let with = |index: i64| [pair(), vec![("i", Tensor::scalar(index))]].concat();
    let mut cases = vec![
        case("s = SequenceConstruct(x, z)\ny = ConcatFromSequence(s, axis=0)", pair()),
        case("s = SequenceConstruct(x, z)\ny = SequenceLength(s)", pair()),
        case(
            "e = SequenceEmpty()\ns = SequenceInsert(e, x)\ny = SequenceAt(s, i)\nu = Neg(z)",
            with(0),
        ),
        case("s = SequenceConstruct(x, z)\nt = SequenceErase(s)\ny = SequenceLength(t)", pair()),
        case(
            "s = SequenceConstruct(x, x)\ny = ConcatFromSequence(s, axis=1, new_axis=1)\nu = Neg(z)",
            pair(),
        ),
        case(
            "s = SequenceConstruct(x, x)\ny = ConcatFromSequence(s, axis=-1, new_axis=1)\nu = Neg(z)",
            pair(),
        ),
        case(
            "s = SequenceConstruct(x, z)\nt = Identity(s)\ny = ConcatFromSequence(t, axis=-2)",
            pair(),
        ),
        case(
            "o = Optional(x)\ny = OptionalGetElement(o)\nh = OptionalHasElement(o)\nu = Neg(z)",
            pair(),
        )
        .opset(18),
    ];
    for index in [0, 1, -1] {
        let text = "s = SequenceConstruct(x, z)\ny = SequenceAt(s, i)";
        cases.push(case(text, with(index)));
        let text = "s = SequenceConstruct(x, z)\nt = SequenceInsert(s, x, i)\ny = ConcatFromSequence(t, axis=0)";
        cases.push(case(text, with(index)));
        let text = "s = SequenceConstruct(x, z)\nt = SequenceErase(s, i)\ny = ConcatFromSequence(t, axis=0)";
        cases.push(case(text, with(index)));
    }
    for settings in ["axis=1", "axis=0", "axis=-1, keepdims=0"] {
        let text = format!(
            "s = SplitToSequence(x, {settings})\ny = SequenceAt(s, i)\nn = SequenceLength(s)"
        );
        cases.push(case(text, vec![("x", f32s(&[3, 4])), ("i", Tensor::scalar(1_i64))]));
    }
    for split in [Tensor::scalar(3_i64), i64s(&[1, 4, 3])] {
        let text = "s = SplitToSequence(x, n, axis=1)\ny = SequenceAt(s, i)\nl = SequenceLength(s)";
        for dtype in [DType::F32, DType::I32, DType::I64] {
            let feeds = vec![
                ("x", typed(dtype, &[2, 8])),
                ("n", split.clone()),
                ("i", Tensor::scalar(-1_i64)),
            ];
            cases.push(case(text, feeds));
        }
    }
    let body = graph_from_text("a: f32[]\nb = Mul(a, a)");
    let text = "s = SequenceConstruct(x, z)\nt = SequenceMap(s)\ny = ConcatFromSequence(t, axis=0)";
    cases.push(case(text, pair()).attribute(1, "body", untyped(body)));
    cases.into_iter().map(Case::exact).collect()
}

/// A graph whose inputs and outputs may have any shape.
fn untyped(mut graph: Graph) -> Graph {
    for value in graph.inputs.iter_mut().chain(&mut graph.outputs) {
        value.value_type = Some(ValueType::Tensor { dtype: Some(DType::F32), shape: None });
    }
    graph
}
