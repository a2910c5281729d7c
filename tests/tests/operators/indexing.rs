//! Operators that read or write elements by index, and those that repeat, extend or rearrange.

use attar_tensor::{DType, Tensor};

use crate::case::*;

const NUMBERS: [DType; 4] = [DType::F32, DType::F64, DType::I64, DType::I32];
const EVERY: [DType; 9] = [
    DType::F32,
    DType::F64,
    DType::F16,
    DType::I64,
    DType::I32,
    DType::I16,
    DType::I8,
    DType::U8,
    DType::U32,
];

fn reading(cases: &mut Vec<Case>) {
    for dtype in EVERY {
        let x = || ("x", typed(dtype, &[3, 4]));
        let picked = || Tensor::new(&[3, 2], &[0_i64, -1, 3, 1, -4, 2]);
        cases.push(case("y = GatherElements(x, i, axis=1)", vec![x(), ("i", picked())]));
        let rows = Tensor::new(&[2, 4], &[0_i32, 2, -1, 1, 0, 0, 2, -3]);
        cases.push(case("y = GatherElements(x, i)", vec![x(), ("i", rows)]));
        let rows = Tensor::new(&[2, 2], &[2_i32, 0, -1, 1]);
        cases.push(case("y = Gather(x, i, axis=1)", vec![x(), ("i", rows)]));
        let points = Tensor::new(&[2, 2], &[0_i64, 1, -1, -2]);
        cases.push(case("y = GatherND(x, i)", vec![x(), ("i", points)]));
        let feeds = vec![x(), ("c", Tensor::from_bools(&[3], &[true, false, true]))];
        cases.push(case("y = Compress(x, c, axis=0)", feeds.clone()));
        cases.push(case("y = Compress(x, c)", feeds));
        let feeds = vec![x(), ("n", i64s(&[1, 3, 2, 2]))];
        cases.push(case("y = ReverseSequence(x, n)", feeds));
        let feeds = vec![x(), ("n", i64s(&[1, 4, 2]))];
        cases.push(case("y = ReverseSequence(x, n, batch_axis=0, time_axis=1)", feeds));
    }
    let x = || ("x", f32s(&[2, 3, 4]));
    let points = Tensor::new(&[2, 1, 1], &[2_i64, 0]);
    let feeds = vec![x(), ("i", points)];
    cases.push(case("y = GatherND(x, i, batch_dims=1)", feeds.clone()));
    cases.push(case("y = GatherND(x, i)", vec![x(), ("i", Tensor::new(&[1, 1], &[1_i64]))]));
    for dtype in [DType::F32, DType::I64, DType::I32, DType::U8] {
        let x = typed(dtype, &[3, 5]);
        cases.push(case("y = NonZero(x)", vec![("x", x)]));
    }
    cases.push(case("y = NonZero(x)", vec![("x", bools(&[2, 3, 4]))]));
    cases.push(case("y = NonZero(x)", vec![("x", Tensor::new(&[3], &[-0.0_f32, f32::NAN, 0.0]))]));
}

fn writing(cases: &mut Vec<Case>) {
    for dtype in EVERY {
        let feeds = vec![
            ("x", typed(dtype, &[3, 4])),
            ("i", Tensor::new(&[2, 3], &[0_i64, 2, -1, 1, 0, 1])),
            ("u", typed(dtype, &[2, 3])),
        ];
        cases.push(case("y = ScatterElements(x, i, u)", feeds.clone()));
        cases.push(case("y = ScatterElements(x, i, u, axis=1)", feeds).opset(13));
        let feeds = vec![
            ("x", typed(dtype, &[4, 2, 2])),
            ("i", Tensor::new(&[2, 1], &[3_i64, -4])),
            ("u", typed(dtype, &[2, 2, 2])),
        ];
        cases.push(case("y = ScatterND(x, i, u)", feeds));
    }
    for dtype in NUMBERS {
        for reduction in ["add", "mul", "min", "max"] {
            let feeds = vec![
                ("x", typed(dtype, &[3, 4])),
                ("i", Tensor::new(&[2, 3], &[0_i64, 2, 2, 0, 0, 1])),
                ("u", typed(dtype, &[2, 3])),
            ];
            let text = format!("y = ScatterElements(x, i, u, axis=1, reduction={reduction})");
            cases.push(case(text, feeds).opset(18).within(1e-6));
            let feeds = vec![
                ("x", typed(dtype, &[4, 3])),
                ("i", Tensor::new(&[3, 1], &[1_i64, 1, 0])),
                ("u", typed(dtype, &[3, 3])),
            ];
            let text = format!("y = ScatterND(x, i, u, reduction={reduction})");
            cases.push(case(text, feeds).opset(18).within(1e-6));
        }
    }
    for (mode, starts) in [("linear", [1_i64, 0]), ("circular", [3, 2])] {
        let feeds =
            vec![("x", f32s(&[2, 3, 4, 5])), ("u", f32s(&[2, 3, 2, 5])), ("i", i64s(&starts))];
        cases.push(case(format!("y = TensorScatter(x, u, i, mode={mode})"), feeds).opset(24));
    }
}

fn choosing(cases: &mut Vec<Case>) {
    for dtype in NUMBERS {
        for (axis, k) in [(-1, 3), (0, 2), (1, 1), (1, 7)] {
            for largest in [0, 1] {
                let feeds = vec![("x", typed(dtype, &[4, 7, 5])), ("k", i64s(&[k]))];
                let text = format!("y, i = TopK(x, k, axis={axis}, largest={largest})");
                if axis != -1 || k <= 5 {
                    cases.push(case(text, feeds));
                }
            }
        }
    }
    let ties =
        Tensor::new(&[2, 6], &[1.0_f32, 3.0, 3.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    cases.push(case("y, i = TopK(x, k)", vec![("x", ties), ("k", i64s(&[4]))]));
    for (dtype, sorted) in [(DType::F32, 0), (DType::F64, 1), (DType::I64, 1), (DType::I8, 0)] {
        let values = [3.0_f32, 1.0, 2.0, 3.0, -1.0, 1.0, 2.0, 2.0];
        let x = Tensor::new(&[2, 4], &values).converted(dtype).expect("numbers convert");
        let text = format!("y, f, v, n = Unique(x, sorted={sorted})");
        cases.push(case(text, vec![("x", x)]));
    }
    let values = [1.0_f32, 2.0, 1.0, 0.0, 5.0, 0.0, 1.0, 2.0, 1.0, 0.0, 4.0, 0.0];
    for axis in [0, 1, -1] {
        let x = Tensor::new(&[2, 3, 2], &values);
        cases.push(case(format!("y, f, v, n = Unique(x, axis={axis})"), vec![("x", x)]));
    }
    for axis in [-1, 0, 1] {
        let feeds = vec![
            ("i", Tensor::new(&[2, 3], &[0_i64, 7, -2, 9, 10, -11])),
            ("d", Tensor::scalar(10_i64)),
            ("v", Tensor::new(&[2], &[-1.0_f32, 2.5])),
        ];
        cases.push(case(format!("y = OneHot(i, d, v, axis={axis})"), feeds));
    }
    let feeds = vec![
        ("i", Tensor::new(&[3], &[1.0_f32, 0.0, 2.0])),
        ("d", Tensor::new(&[1], &[3.0_f32])),
        ("v", Tensor::new(&[2], &[0.5_f32, 1.5])),
    ];
    cases.push(case("y = OneHot(i, d, v)", feeds));
    suppressing(cases);
}

fn suppressing(cases: &mut Vec<Case>) {
    for (boxes, center) in [(6, 0), (40, 0), (40, 1)] {
        let sizes = positive(&[2, boxes, 4]);
        let scores = f32s(&[2, 3, boxes]);
        for (overlap, score) in [(0.5_f32, 0.0_f32), (0.1, -10.0), (0.0, 0.2)] {
            let feeds = vec![
                ("b", sizes.clone()),
                ("s", scores.clone()),
                ("m", i64s(&[7])),
                ("o", Tensor::new(&[1], &[overlap])),
                ("t", Tensor::new(&[1], &[score])),
            ];
            let text = format!("y = NonMaxSuppression(b, s, m, o, t, center_point_box={center})");
            cases.push(case(text, feeds));
        }
    }
    let feeds = vec![("b", positive(&[1, 5, 4])), ("s", f32s(&[1, 1, 5])), ("m", i64s(&[3]))];
    cases.push(case("y = NonMaxSuppression(b, s, m)", feeds.clone()));
    let feeds = feeds.into_iter().take(2).collect();
    cases.push(case("y = NonMaxSuppression(b, s)", feeds));
}

fn shaping(cases: &mut Vec<Case>) {
    for mode in ["constant", "reflect", "edge", "wrap"] {
        for pads in [[0_i64, 1, 2, 0, 2, 1], [1, 0, 0, 1, 0, 3], [0, -1, 1, 0, 0, -2]] {
            let feeds = vec![("x", f32s(&[3, 4, 5])), ("p", i64s(&pads))];
            let text = format!("y = Pad(x, p, mode={mode})");
            cases.push(case(text, feeds).opset(19));
        }
    }
    for dtype in [DType::F32, DType::F64, DType::I64, DType::I32, DType::I8, DType::U8] {
        let value = Tensor::scalar(3.0_f32).converted(dtype).expect("numbers convert");
        let feeds = vec![
            ("x", typed(dtype, &[2, 3, 4])),
            ("p", i64s(&[1, 0, 2, 1])),
            ("v", value),
            ("a", i64s(&[-1, 0])),
        ];
        cases.push(case("y = Pad(x, p, v, a)", feeds).opset(18));
        let feeds = vec![("x", typed(dtype, &[2, 3])), ("r", i64s(&[2, 3]))];
        cases.push(case("y = Tile(x, r)", feeds));
        cases.push(case("y = Size(x)", vec![("x", typed(dtype, &[2, 3]))]));
    }
    cases.push(case("y = Tile(x, r)", vec![("x", f32s(&[2, 1, 3])), ("r", i64s(&[1, 4, 0]))]));
    cases.push(case("y = Size(x)", vec![("x", Tensor::scalar(2_i64))]));
    for dtype in [DType::F32, DType::F64, DType::I64] {
        for (upper, k) in [(1, 0_i64), (0, 0), (1, 2), (0, -1), (0, 9), (1, -9)] {
            let feeds = vec![("x", typed(dtype, &[2, 3, 5])), ("k", Tensor::scalar(k))];
            cases.push(case(format!("y = Trilu(x, k, upper={upper})"), feeds));
        }
    }
    cases.push(case("y = Trilu(x)", vec![("x", bools(&[4, 4]))]));
    let x = || ("x", f32s(&[2, 8, 4, 6]));
    cases.push(case("y = SpaceToDepth(x, blocksize=2)", vec![x()]));
    cases.push(case("y = DepthToSpace(x, blocksize=2)", vec![x()]));
    cases.push(case("y = DepthToSpace(x, blocksize=2, mode=CRD)", vec![x()]));
    for sizes in [[5_i64, 2], [1, 7], [3, 4]] {
        let feeds = vec![("x", f32s(&[3, 4])), ("s", i64s(&sizes))];
        cases.push(case("y = CenterCropPad(x, s)", feeds).opset(18));
    }
    let ranges = [
        [Tensor::scalar(0.5_f32), Tensor::scalar(3.1_f32), Tensor::scalar(0.4_f32)],
        [Tensor::scalar(2.0_f64), Tensor::scalar(-1.0_f64), Tensor::scalar(-0.5_f64)],
        [Tensor::scalar(7_i32), Tensor::scalar(-2_i32), Tensor::scalar(-4_i32)],
        [Tensor::scalar(1_i16), Tensor::scalar(9_i16), Tensor::scalar(3_i16)],
    ];
    for [start, limit, delta] in ranges {
        let feeds = vec![("a", start), ("b", limit), ("c", delta)];
        cases.push(case("y = Range(a, b, c)", feeds));
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    reading(&mut cases);
    writing(&mut cases);
    choosing(&mut cases);
    shaping(&mut cases);
    let is_rounded = |case: &Case| case.text.contains("reduction") || case.text.contains("Range");
    cases.into_iter().map(|case| if is_rounded(&case) { case } else { case.exact() }).collect()
}
