//! Functions of one value, in every type that ONNX Runtime computes them in.

use attar_tensor::{DType, Tensor};

use crate::case::*;

/// The types of every numeric kernel of ONNX Runtime.
pub(crate) const NUMBERS: [DType; 11] = [
    DType::F32,
    DType::F64,
    DType::F16,
    DType::I8,
    DType::U8,
    DType::I16,
    DType::U16,
    DType::I32,
    DType::U32,
    DType::I64,
    DType::U64,
];

/// Halves differ by their last bit where f32 results lie between two of them.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1e-3,
        DType::BF16 => 8e-3,
        _ => 2e-6,
    }
}

/// Numbers from −20 to 20 in the given type, from 0 if it has no others.
pub(crate) fn numbers_in(dtype: DType, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = f32s(shape).slice::<f32>().iter().map(|x| x * 20.0).collect();
    let values = match dtype {
        _ if dtype.is_float() => values,
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => values,
        _ => values.into_iter().map(f32::abs).collect(),
    };
    Tensor::new(shape, &values).converted(dtype).expect("numbers convert")
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let floats = [DType::F32, DType::F64, DType::F16];
    for dtype in floats {
        for op in ["Ceil", "Round", "Floor", "Exp", "Cos", "Sin", "Tanh", "Sigmoid"] {
            for shape in [&[7, 33][..], &[3], &[0, 4], &[]] {
                let feeds = vec![("x", numbers_in(dtype, shape))];
                cases.push(case(format!("y = {op}(x)"), feeds).within(tolerance(dtype)));
            }
        }
        let x = numbers_in(dtype, &[6, 11]);
        let x: Vec<f64> = x.to_f64().expect("numbers").iter().map(|x| x.abs() + 0.1).collect();
        let x = Tensor::new(&[6, 11], &x).converted(dtype).expect("numbers convert");
        for op in ["Log", "Sqrt", "Reciprocal"] {
            let feeds = vec![("x", x.clone())];
            cases.push(case(format!("y = {op}(x)"), feeds).within(tolerance(dtype)));
        }
        cases.push(case("y = Swish(x)", vec![("x", x.clone())]).opset(24).within(tolerance(dtype)));
        let text = "y = Swish(x, alpha=1.702)";
        cases.push(case(text, vec![("x", x)]).opset(24).within(tolerance(dtype)));
    }
    for dtype in [DType::F32, DType::F16] {
        let plain = ["Tan", "Atan", "Sinh", "Cosh", "Asinh", "Selu", "Softplus", "Softsign"];
        let set = ["Elu", "Elu(x, alpha=0.4)", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish"];
        let rest = ["Erf", "ThresholdedRelu", "ThresholdedRelu(x, alpha=3.0)"];
        let set_twice = ["Selu(x, alpha=1.1, gamma=2.5)", "HardSigmoid(x, alpha=0.1, beta=0.3)"];
        let all = plain.iter().chain(&set).chain(&rest).chain(&set_twice);
        for op in all {
            let call = if op.contains('(') { (*op).to_string() } else { format!("{op}(x)") };
            for shape in [&[5, 37][..], &[2, 3, 4], &[1]] {
                let mut x = numbers_in(dtype, shape);
                if ["Sinh", "Cosh"].contains(op) {
                    let half = x.to_f64().expect("numbers").iter().map(|x| x / 4.0).collect();
                    let half: Vec<f64> = half;
                    x = Tensor::new(shape, &half).converted(dtype).expect("numbers convert");
                }
                let text = format!("y = {call}");
                cases.push(case(text, vec![("x", x)]).opset(18).within(tolerance(dtype)));
            }
        }
        for op in ["Acos", "Asin", "Atanh"] {
            let x = f32s(&[4, 9]).converted(dtype).expect("numbers convert");
            cases.push(case(format!("y = {op}(x)"), vec![("x", x)]).within(tolerance(dtype)));
        }
        let x = positive(&[4, 9]);
        let x: Vec<f32> = x.slice::<f32>().iter().map(|x| x + 1.0).collect();
        let x = Tensor::new(&[4, 9], &x).converted(dtype).expect("numbers convert");
        cases.push(case("y = Acosh(x)", vec![("x", x)]).within(tolerance(dtype)));
    }
    for text in ["y = Celu(x)", "y = Celu(x, alpha=2.5)"] {
        cases.push(case(text, vec![("x", numbers_in(DType::F32, &[3, 50]))]));
    }
    cases.extend(integer_cases());
    cases.extend(special_cases());
    cases
}

fn integer_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in NUMBERS {
        let is_signed = matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64);
        for op in ["Abs", "Sign", "Shrink(x, lambd=3.0, bias=1.0)", "Neg", "Relu"] {
            let is_known = match op {
                "Neg" => dtype != DType::I16 && is_signed,
                "Relu" => matches!(dtype, DType::I8 | DType::I32),
                _ => true,
            };
            if is_known || dtype.is_float() {
                let call = if op.contains('(') { op.to_string() } else { format!("{op}(x)") };
                let feeds = vec![("x", numbers_in(dtype, &[3, 13]))];
                cases.push(case(format!("y = {call}"), feeds).exact());
            }
        }
        if !dtype.is_float() {
            let feeds = vec![("x", numbers_in(dtype, &[3, 13]))];
            cases.push(case("y = BitwiseNot(x)", feeds).opset(18).exact());
        }
    }
    cases
}

/// NaN, infinities and zeros.
fn special_cases() -> Vec<Case> {
    let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0, -1.0, 0.5];
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::F64, DType::F16] {
        let x = Tensor::new(&[2, 4], &special).converted(dtype).expect("numbers convert");
        for call in [
            "IsNaN(x)",
            "IsInf(x)",
            "IsInf(x, detect_negative=0)",
            "IsInf(x, detect_positive=0)",
            "Abs(x)",
            "Neg(x)",
            "Floor(x)",
            "Ceil(x)",
            "Round(x)",
            "Sqrt(x)",
            "Log(x)",
            "Reciprocal(x)",
        ] {
            let feeds = vec![("x", x.clone())];
            cases.push(case(format!("y = {call}"), feeds).opset(20).within(tolerance(dtype)));
        }
    }
    let x = Tensor::new(&[2, 4], &special);
    for op in ["Softplus", "Elu", "Selu", "Mish", "Sigmoid", "Tanh", "Relu", "Softsign", "Exp"] {
        // Mish of −∞ is 0 in the limit; both runtimes multiply −∞ by 0.
        cases.push(case(format!("y = {op}(x)"), vec![("x", x.clone())]).opset(18));
    }
    cases
}
