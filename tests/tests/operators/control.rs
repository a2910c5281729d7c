//! If, Loop and Scan.

use attar_tensor::Tensor;

use crate::case::*;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for condition in [true, false] {
        let feeds = vec![
            ("c", Tensor::from_bools(&[], &[condition])),
            ("x", f32s(&[2, 3])),
            ("z", f32s(&[2, 3])),
        ];
        let branches = case("y, w = If(c)\nu = Add(x, z)", feeds)
            .body("then_branch", "a = Add(x, z)\nb = Mul(x, x)")
            .body("else_branch", "a1 = Sub(x, z)\nb1 = Neg(x)");
        cases.push(branches);
    }
    let body = "i: i64[]\nc: bool[]\nb: f32[2]\nd = Identity(c)\ne = Add(b, s)\na = Identity(e)\nk = Mul(e, e)";
    for count in [1_i64, 5] {
        let feeds = vec![
            ("n", Tensor::scalar(count)),
            ("g", Tensor::from_bools(&[], &[true])),
            ("x", f32s(&[2])),
            ("s", f32s(&[2])),
        ];
        cases.push(case("y, k0 = Loop(n, g, x)\nu = Neg(s)", feeds).body("body", body));
    }
    let alone = "i: i64[]\nc: bool[]\nb: f32[2]\nd = Identity(c)\na = Add(b, b)\nk = Mul(b, b)";
    for count in [0_i64, 3] {
        let feeds = vec![
            ("n", Tensor::scalar(count)),
            ("g", Tensor::from_bools(&[], &[true])),
            ("x", f32s(&[2])),
        ];
        cases.push(case("y, k0 = Loop(n, g, x)", feeds).body("body", alone));
    }
    let stops = "i: i64[]\nc: bool[]\nb: f32[1]\na = Add(b, b)\nm = ReduceMax(a, keepdims=0)\n\
                 d = Less(m, s)\nf = Identity(a)\nk = Identity(a)";
    let feeds = vec![
        ("n", Tensor::scalar(100_i64)),
        ("g", Tensor::from_bools(&[], &[true])),
        ("x", Tensor::new(&[1], &[1.0_f32])),
        ("s", Tensor::scalar(50.0_f32)),
    ];
    cases.push(case("y, k0 = Loop(n, g, x)\nu = Neg(s)", feeds).body("body", stops));
    let sums = "b: f32[3]\nt: f32[3]\ne = Add(b, t)\na = Identity(e)\nk = Mul(e, t)";
    for settings in ["", ", scan_input_directions=1", ", scan_output_directions=1"] {
        let feeds = vec![("x", f32s(&[3])), ("t0", f32s(&[5, 3]))];
        let text = format!("y, k0 = Scan(x, t0, num_scan_inputs=1{settings})");
        cases.push(case(text, feeds).body("body", sums));
    }
    let feeds = vec![("x", f32s(&[3])), ("t0", f32s(&[3, 4]))];
    let text = "y, k0 = Scan(x, t0, num_scan_inputs=1, scan_input_axes=1, scan_output_axes=-1)";
    cases.push(case(text, feeds).body("body", sums));
    cases
}
