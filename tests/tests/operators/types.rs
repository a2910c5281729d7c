//! Casts between types.

use attar_tensor::{Bytes, DType, Tensor};

use crate::case::*;
use crate::functions::NUMBERS;

/// ONNX's number of a type.
fn code(dtype: DType) -> i64 {
    attar_onnx::dtype_code(dtype)
}

fn strings(texts: &[&'static str]) -> Tensor {
    let all = texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect();
    Tensor::from_strings(&[texts.len()], all).expect("one string each")
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let small = Tensor::new(&[7], &[0.0_f32, 1.0, 0.3, 2.5, 7.0, 100.0, 3.7]);
    let signed = Tensor::new(&[6], &[-1.0_f32, -2.5, 0.4, 7.0, -8.0, 5.5]);
    let types = || NUMBERS.into_iter().chain([DType::Bool, DType::BF16]);
    for from in types() {
        let x = small.converted(from).expect("numbers convert");
        for to in types() {
            let text = format!("y = Cast(x, to={})", code(to));
            cases.push(case(text, vec![("x", x.clone())]).exact());
            let like = Tensor::scalar(0.0_f32).converted(to).expect("numbers convert");
            let feeds = vec![("x", x.clone()), ("t", like)];
            cases.push(case("y = CastLike(x, t)", feeds).exact());
        }
    }
    for to in [DType::I8, DType::I16, DType::I32, DType::I64, DType::F64, DType::F16, DType::BF16] {
        let text = format!("y = Cast(x, to={})", code(to));
        cases.push(case(text, vec![("x", signed.clone())]).exact());
    }
    // Integers lose their high bits.
    let wide = Tensor::new(&[4], &[300_i32, -129, 65_537, -1]);
    for to in [DType::I8, DType::U8, DType::I16, DType::U16, DType::U32, DType::U64, DType::I64] {
        let text = format!("y = Cast(x, to={})", code(to));
        cases.push(case(text, vec![("x", wide.clone())]).exact());
    }
    cases.extend(small_float_cases());
    cases.extend(string_cases());
    for (x, to) in [
        (f32s(&[3, 5]), DType::I32),
        (f32s(&[3, 5]), DType::U32),
        (wide.clone(), DType::F32),
        (wide, DType::U32),
    ] {
        let text = format!("y = BitCast(x, to={})", code(to));
        cases.push(case(text, vec![("x", x)]).opset(26).exact());
    }
    cases
}

/// By way of the small type and back.
fn small_float_cases() -> Vec<Case> {
    let x = Tensor::new(
        &[16],
        &[
            0.0_f32,
            -0.0,
            1.0,
            0.3,
            -2.6,
            447.0,
            464.0,
            500.0,
            -1e6,
            1e-3,
            0.002,
            17.0,
            19.0,
            f32::NAN,
            60000.0,
            1.0625,
        ],
    );
    let mut cases = Vec::new();
    for to in [DType::F8E4M3FN, DType::F8E4M3FNUZ, DType::F8E5M2, DType::F8E5M2FNUZ] {
        for saturate in [0, 1] {
            for from in [DType::F32, DType::F16] {
                let text =
                    format!("c = Cast(x, to={}, saturate={saturate})\ny = Cast(c, to=1)", code(to));
                let feeds = vec![("x", x.converted(from).expect("numbers convert"))];
                cases.push(case(text, feeds).opset(19).exact());
            }
        }
    }
    for to in [DType::I4, DType::U4] {
        let x = Tensor::new(&[7], &[0_i32, 1, 7, 8, 15, -1, 100]);
        let text = format!("c = Cast(x, to={})\ny = Cast(c, to=6)", code(to));
        cases.push(case(text, vec![("x", x)]).opset(21).exact());
        let x = Tensor::new(&[5], &[0.0_f32, 1.0, 7.0, 5.0, 3.0]);
        let text = format!("c = Cast(x, to={})\ny = Cast(c, to=1)", code(to));
        cases.push(case(text, vec![("x", x)]).opset(21).exact());
    }
    cases
}

fn string_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let x = Tensor::new(
        &[9],
        &[0.478_925_47_f32, 1.0, -0.0, 123_456.79, 1e20, 1e-7, f32::NAN, f32::INFINITY, -0.015_625],
    );
    cases.push(case("y = Cast(x, to=8)", vec![("x", x)]).exact());
    cases.push(case("y = Cast(x, to=8)", vec![("x", i64s(&[1, -5, i64::MIN]))]).exact());
    cases.push(case("y = Cast(x, to=8)", vec![("x", bools(&[4]))]).exact());
    let texts = strings(&["0.5", "-INF", "+inf", "NaN", "1e-5", "100"]);
    for to in [DType::F32, DType::F64, DType::F16] {
        let text = format!("y = Cast(x, to={})", code(to));
        cases.push(case(text, vec![("x", texts.clone())]).exact());
    }
    let texts = strings(&["12", "-7", "100"]);
    for to in [DType::I64, DType::I32, DType::I16] {
        let text = format!("y = Cast(x, to={})", code(to));
        cases.push(case(text, vec![("x", texts.clone())]).exact());
    }
    // Gradients flow through f64.
    for op in ["Exp(d)", "Mul(d, d)", "ReduceL2(d)"] {
        let text = format!("d = Cast(x, to={})\ny = {op}", code(DType::F64));
        cases.push(case(text, vec![("x", f32s(&[3, 4]))]));
    }
    cases
}
