//! Functions of two or more values, in every type that ONNX Runtime computes them in.

use attar_tensor::{DType, Tensor};

use crate::case::*;
use crate::functions::{NUMBERS, numbers_in, tolerance};

/// Numbers other than 0.
fn divisors(dtype: DType, shape: &[usize]) -> Tensor {
    let values = numbers_in(dtype, shape).to_f64().expect("numbers");
    let values: Vec<f64> = values.iter().map(|x| if x.abs() < 1.0 { 3.0 } else { *x }).collect();
    Tensor::new(shape, &values).converted(dtype).expect("numbers convert")
}

const PAIRS: [[&[usize]; 2]; 6] = [
    [&[4, 5], &[4, 5]],
    [&[2, 3, 4], &[4]],
    [&[2, 6, 3, 3], &[6, 1, 1]],
    [&[3, 1], &[1, 7]],
    [&[], &[5]],
    [&[0, 3], &[3]],
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in NUMBERS {
        for [a, b] in PAIRS {
            let feeds = || vec![("a", numbers_in(dtype, a)), ("b", divisors(dtype, b))];
            for op in ["Add", "Sub", "Mul", "Div"] {
                cases.push(case(format!("y = {op}(a, b)"), feeds()).within(tolerance(dtype)));
            }
            for op in ["Equal", "Less", "Greater", "GreaterOrEqual", "LessOrEqual"] {
                cases.push(case(format!("y = {op}(a, b)"), feeds()).exact());
            }
            cases.push(case("y = Mod(a, b, fmod=1)", feeds()).within(tolerance(dtype)));
            if !dtype.is_float() {
                cases.push(case("y = Mod(a, b)", feeds()).exact());
                for op in ["BitwiseAnd", "BitwiseOr", "BitwiseXor"] {
                    cases.push(case(format!("y = {op}(a, b)"), feeds()).opset(18).exact());
                }
            }
            if !matches!(dtype, DType::I16 | DType::U16) {
                for op in ["Min", "Max"] {
                    cases.push(case(format!("y = {op}(a, b)"), feeds()).exact());
                    cases.push(case(format!("y = {op}(a, b, a)"), feeds()).exact());
                }
            }
            if dtype.is_float() {
                cases.push(case("y = Sum(a, b, a)", feeds()).within(tolerance(dtype)));
            }
            if matches!(dtype, DType::F32 | DType::F16) {
                cases.push(case("y = Mean(a, b, a)", feeds()).within(tolerance(dtype)));
            }
        }
        if !matches!(dtype, DType::I16 | DType::U16) {
            cases.extend(clip_cases(dtype));
        }
    }
    let gates = || vec![("a", f32s(&[3, 17])), ("b", numbers_in(DType::F32, &[3, 17]))];
    let reference = "s = Sigmoid(a)\ng = Mul(a, s)\ny = Mul(g, b)";
    cases.push(case("y = SwiGLU(a, b)", gates()).equivalent_to(reference));
    let reference = "s = Swish(a, alpha=0.5)\ny = Mul(s, b)";
    let gated = case("y = SwiGLU(a, b, alpha=0.5)", gates());
    cases.push(gated.opset(24).equivalent_to(reference));
    cases.extend(exact_cases());
    cases.extend(prelu_cases());
    for [a, b] in PAIRS {
        let feeds = vec![("a", bools(a)), ("b", bools(b))];
        cases.push(case("y = Xor(a, b)", feeds.clone()).exact());
        cases.push(case("y = Equal(a, b)", feeds).exact());
    }
    cases
}

fn clip_cases(dtype: DType) -> Vec<Case> {
    let bound = |x: f32| Tensor::scalar(x).converted(dtype).expect("numbers convert");
    let x = || ("x", numbers_in(dtype, &[4, 9]));
    vec![
        case("y = Clip(x)", vec![x()]).exact(),
        case("y = Clip(x, l)", vec![x(), ("l", bound(2.0))]).exact(),
        case("y = Clip(x, , h)", vec![x(), ("h", bound(7.0))]).exact(),
        case("y = Clip(x, l, h)", vec![x(), ("l", bound(2.0)), ("h", bound(7.0))]).exact(),
        case("y = Clip(x, l, h)", vec![x(), ("l", bound(9.0)), ("h", bound(3.0))]).exact(),
    ]
}

/// What a detour by f64 would round.
fn exact_cases() -> Vec<Case> {
    let large = i64s(&[i64::MAX, i64::MIN, (1 << 53) + 1, -5, 7]);
    let small = i64s(&[3, 2, 1, -2, 2]);
    let unsigned = Tensor::new(&[4], &[u64::MAX, u64::MAX - 1, 1 << 63, 9]);
    let other = Tensor::new(&[4], &[2_u64, u64::MAX, 3, 4]);
    let mut cases = Vec::new();
    for op in ["Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Less", "Greater"] {
        let feeds = vec![("a", large.clone()), ("b", small.clone())];
        cases.push(case(format!("y = {op}(a, b)"), feeds).exact());
        let feeds = vec![("a", unsigned.clone()), ("b", other.clone())];
        cases.push(case(format!("y = {op}(a, b)"), feeds).exact());
    }
    let nan = Tensor::new(&[4], &[f32::NAN, 1.0, f32::INFINITY, -0.0]);
    let one = Tensor::new(&[4], &[1.0_f32, f32::NAN, f32::NEG_INFINITY, 0.0]);
    for op in ["Max", "Min", "Equal", "Less", "GreaterOrEqual", "Sum", "Mean"] {
        let feeds = vec![("a", nan.clone()), ("b", one.clone())];
        cases.push(case(format!("y = {op}(a, b)"), feeds).exact());
    }
    for direction in ["LEFT", "RIGHT"] {
        for dtype in [DType::U8, DType::U16, DType::U32, DType::U64] {
            let shift = Tensor::new(&[5], &[0_u8, 1, 3, 7, 2]).converted(dtype).expect("numbers");
            let feeds = vec![("a", numbers_in(dtype, &[3, 5])), ("b", shift)];
            cases.push(case(format!("y = BitShift(a, b, direction={direction})"), feeds).exact());
        }
    }
    for (a, b) in [
        (DType::F32, DType::I32),
        (DType::F32, DType::I64),
        (DType::F32, DType::F64),
        (DType::F64, DType::F64),
        (DType::F64, DType::I32),
        (DType::I32, DType::I32),
        (DType::I32, DType::F32),
        (DType::I64, DType::I64),
        (DType::I64, DType::F64),
        (DType::F16, DType::F16),
    ] {
        let base = divisors(a, &[3, 4]);
        for exponents in [&[2.0_f32][..], &[3.0], &[0.0, 1.0, 2.0, 3.0]] {
            let exponent = Tensor::new(&[exponents.len()], exponents);
            let exponent = exponent.converted(b).expect("numbers convert");
            let feeds = vec![("a", base.clone()), ("b", exponent)];
            cases.push(case("y = Pow(a, b)", feeds).within(tolerance(a)));
        }
    }
    cases
}

fn prelu_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::F16] {
        let pairs: [[&[usize]; 2]; 4] =
            [[&[2, 3, 4, 5], &[3, 1, 1]], [&[4, 7], &[7]], [&[6], &[1]], [&[2, 3, 4], &[3, 4]]];
        for [x, slope] in pairs {
            let feeds = vec![("x", numbers_in(dtype, x)), ("s", numbers_in(dtype, slope))];
            cases.push(case("y = PRelu(x, s)", feeds).opset(16).within(tolerance(dtype)));
        }
    }
    cases
}
