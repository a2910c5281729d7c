//! Arithmetic, comparison, logic and functions of one value.

use attar_tensor::Tensor;

use crate::case::*;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes: &[[&[usize]; 2]] = &[
        [&[3], &[3]],
        [&[2, 3, 4], &[4]],
        [&[4], &[2, 3, 4]],
        [&[2, 3, 4], &[2, 1, 4]],
        [&[5, 1, 7], &[1, 6, 1]],
        [&[2, 8, 5, 5], &[8, 1, 1]],
        [&[], &[3, 2]],
        [&[0, 3], &[3]],
        [&[33, 129], &[33, 129]],
    ];
    for [a, b] in shapes {
        for op in ["Add", "Sub", "Mul", "Div"] {
            let feeds = vec![("a", f32s(a)), ("b", positive(b))];
            cases.push(case(format!("y = {op}(a, b)"), feeds).within(1e-7));
        }
        let feeds = || vec![("a", positive(a)), ("b", f32s(b))];
        cases.push(case("y = Pow(a, b)", feeds()));
        for op in ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"] {
            cases.push(case(format!("y = {op}(a, b)"), feeds()).exact());
        }
        for op in ["And", "Or"] {
            let feeds = vec![("a", bools(a)), ("b", bools(b))];
            cases.push(case(format!("y = {op}(a, b)"), feeds).exact());
        }
        for op in ["Min", "Max"] {
            cases.push(case(format!("y = {op}(a, b)"), feeds()).exact());
        }
        let feeds = vec![("c", bools(a)), ("a", f32s(b)), ("b", f32s(&[1]))];
        cases.push(case("y = Where(c, a, b)", feeds).exact());
    }
    let integers = || vec![("a", i64s(&[7, -7, 5, -8, 0])), ("b", i64s(&[3, 3, -2, -3, 4]))];
    for op in ["Add", "Sub", "Mul", "Div", "Mod", "Equal", "Less"] {
        cases.push(case(format!("y = {op}(a, b)"), integers()).exact());
    }
    cases.push(case("y = Mod(a, b, fmod=1)", integers()).exact());
    cases.push(
        case("y = Pow(a, b)", vec![("a", i64s(&[2, -3, 5])), ("b", i64s(&[10, 3, 0]))]).exact(),
    );
    cases.push(case("y = Not(a)", vec![("a", bools(&[3, 2]))]).exact());
    let wide = Tensor::new(&[9], &[-1e9_f32, -90.0, -20.0, -1.0, 0.0, 1e-8, 1.0, 20.0, 88.0]);
    for x in [f32s(&[1]), f32s(&[7, 33]), f32s(&[2, 3, 64]), f32s(&[0]), wide] {
        let unary = ["Abs", "Ceil", "Erf", "Exp", "Floor", "HardSwish", "Neg", "Relu", "Round"];
        for op in unary {
            cases.push(case(format!("y = {op}(x)"), vec![("x", x.clone())]));
        }
        for op in ["Sigmoid", "Tanh", "HardSigmoid", "LeakyRelu"] {
            cases.push(case(format!("y = {op}(x)"), vec![("x", x.clone())]));
        }
        cases.push(case("y = Gelu(x)", vec![("x", x.clone())]).opset(20));
        cases.push(case("y = Gelu(x, approximate=tanh)", vec![("x", x.clone())]).opset(20));
        cases.push(case("y = Identity(x)", vec![("x", x.clone())]).exact());
        let scalar = |value: f32| Tensor::scalar(value);
        let feeds = vec![("x", x.clone()), ("low", scalar(-0.5)), ("high", scalar(0.75))];
        cases.push(case("y = Clip(x, low, high)", feeds).exact());
        for to in [1, 6, 7, 9, 11] {
            let small = Tensor::new(&[5], &[-2.7_f32, -0.2, 0.0, 0.9, 100.4]);
            cases.push(case(format!("y = Cast(x, to={to})"), vec![("x", small)]).exact());
        }
    }
    cases.push(case("y = Dropout(x)", vec![("x", f32s(&[7, 33]))]).exact());
    for op in ["Log", "Sqrt", "Reciprocal"] {
        cases.push(case(format!("y = {op}(x)"), vec![("x", positive(&[5, 21]))]));
    }
    cases.push(case("y = LeakyRelu(x, alpha=0.3)", vec![("x", f32s(&[40]))]));
    cases.push(case("y = Cast(x, to=1)", vec![("x", i64s(&[1, -5, 1 << 40]))]).exact());
    cases
}
