//! Operators that move elements and compute shapes.

use attar_tensor::Tensor;

use crate::case::*;

#[allow(clippy::too_many_lines)] // a table
pub(crate) fn cases() -> Vec<Case> {
    let x = || ("x", f32s(&[2, 3, 4, 5]));
    let mut cases = vec![
        case("c = Constant()\ny = Add(c, x)", vec![("x", f32s(&[3, 2]))]).exact(),
        case("y = Shape(x)", vec![x()]).exact(),
        case("y = Shape(x, start=1, end=-1)", vec![x()]).opset(15).exact(),
        case("y = Flatten(x)", vec![x()]).exact(),
        case("y = Flatten(x, axis=0)", vec![x()]).exact(),
        case("y = Flatten(x, axis=-1)", vec![x()]).exact(),
        case("y = Transpose(x)", vec![x()]).exact(),
        case("y = Concat(x, z, axis=2)", vec![x(), ("z", f32s(&[2, 3, 1, 5]))]).exact(),
        case("y = Concat(x, z, axis=-1)", vec![("x", f32s(&[3, 0])), ("z", f32s(&[3, 2]))]).exact(),
        case("a, b = Split(x, axis=2)", vec![x()]).exact(),
        case("a, b, c = Split(x, s, axis=3)", vec![x(), ("s", i64s(&[1, 3, 1]))]).exact(),
        case("y = ConstantOfShape(s)", vec![("s", i64s(&[2, 0, 3]))]).exact(),
        case("y = ConstantOfShape(s)", vec![("s", i64s(&[2, 3]))]).exact(),
    ];
    for perm in ["0,2,1,3", "0,1,3,2", "3,2,1,0", "1,0,2,3", "0,2,3,1", "0,1,2,3"] {
        cases.push(case(format!("y = Transpose(x, perm={perm})"), vec![x()]).exact());
        let wide = ("x", f32s(&[1, 33, 12, 32]));
        cases.push(case(format!("y = Transpose(x, perm={perm})"), vec![wide]).exact());
        let bytes = ("x", bytes_u8(&[2, 3, 1, 4]));
        cases.push(case(format!("y = Transpose(x, perm={perm})"), vec![bytes]).exact());
    }
    for target in [&[0, -1][..], &[6, 20], &[2, 3, 4, 5], &[-1], &[0, 0, 2, -1, 5]] {
        cases.push(case("y = Reshape(x, s)", vec![x(), ("s", i64s(target))]).exact());
    }
    for shape in [&[2, 1, 4][..], &[1], &[3, 1, 1]] {
        let feeds = vec![("x", f32s(&[1, 4])), ("s", i64s(shape))];
        cases.push(case("y = Expand(x, s)", feeds).exact());
    }
    for axes in [&[0][..], &[-1, 1], &[0, 4]] {
        let feeds = vec![("x", f32s(&[2, 3, 4])), ("a", i64s(axes))];
        cases.push(case("y = Unsqueeze(x, a)", feeds).exact());
    }
    cases.push(case("y = Unsqueeze(x, axes=0)", vec![("x", f32s(&[3]))]).opset(11).exact());
    cases.push(case("y = Squeeze(x, axes=0)", vec![("x", f32s(&[1, 3, 1]))]).opset(11).exact());
    cases.push(case("y = Squeeze(x)", vec![("x", f32s(&[1, 3, 1]))]).exact());
    cases
        .push(case("y = Squeeze(x, a)", vec![("x", f32s(&[1, 3, 1])), ("a", i64s(&[-1]))]).exact());
    let slices: &[[&[i64]; 4]] = &[
        [&[1], &[3], &[2], &[1]],
        [&[-1], &[-100], &[3], &[-2]],
        [&[0, 1], &[2, i64::MAX], &[1, -1], &[1, 2]],
        [&[5], &[1], &[0], &[1]],
    ];
    for [starts, ends, axes, steps] in slices {
        let feeds = vec![
            x(),
            ("s", i64s(starts)),
            ("e", i64s(ends)),
            ("a", i64s(axes)),
            ("t", i64s(steps)),
        ];
        cases.push(case("y = Slice(x, s, e, a, t)", feeds).exact());
    }
    for (axis, indices) in [(0, vec![1_i64, 0, 1]), (1, vec![-1, 2]), (-1, vec![]), (3, vec![4])] {
        let feeds = vec![x(), ("i", i64s(&indices))];
        cases.push(case(format!("y = Gather(x, i, axis={axis})"), feeds).exact());
    }
    let matrix = Tensor::new(&[2, 2], &[1_i64, 0, 2, -3]);
    cases.push(case("y = Gather(x, i)", vec![("x", f32s(&[3, 5])), ("i", matrix)]).exact());
    let scalar = |value: i64| Tensor::scalar(value);
    for (start, limit, delta) in [(0, 5, 1), (10, 0, -3), (3, 3, 1)] {
        let feeds = vec![("a", scalar(start)), ("b", scalar(limit)), ("c", scalar(delta))];
        cases.push(case("y = Range(a, b, c)", feeds).exact());
    }
    for (axis, settings) in [(0, ""), (2, ", reverse=1"), (-1, ", exclusive=1")] {
        let feeds = vec![("x", f32s(&[2, 3, 4])), ("a", Tensor::scalar(axis as i64))];
        cases.push(case(format!("y = CumSum(x, a{settings})"), feeds).within(1e-6));
    }
    cases
}
