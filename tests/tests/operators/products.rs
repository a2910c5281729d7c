//! Products of matrices.

use attar_tensor::Tensor;

use crate::case::*;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes: &[[&[usize]; 2]] = &[
        [&[1, 1], &[1, 1]],
        [&[5, 7], &[7, 3]],
        [&[1, 384], &[384, 100]],
        [&[2, 16, 384], &[384, 130]],
        [&[2, 3, 4, 5], &[2, 3, 5, 6]],
        [&[2, 1, 4, 5], &[3, 5, 6]],
        [&[5], &[5, 3]],
        [&[4, 5], &[5]],
        [&[7], &[7]],
        [&[0, 5], &[5, 3]],
        [&[129, 300], &[300, 65]],
    ];
    for [a, b] in shapes {
        cases.push(case("y = MatMul(a, b)", vec![("a", f32s(a)), ("b", f32s(b))]).within(4e-6));
    }
    for (a, b, settings) in [
        (&[3, 5], &[5, 4], ""),
        (&[5, 3], &[5, 4], ", transA=1"),
        (&[3, 5], &[4, 5], ", transB=1"),
        (&[5, 3], &[4, 5], ", transA=1, transB=1"),
        (&[3, 5], &[4, 5], ", transB=1, alpha=0.5, beta=2.0"),
    ] {
        for c in [&[4][..], &[3, 4], &[3, 1], &[]] {
            let feeds = vec![("a", f32s(a)), ("b", f32s(b)), ("c", f32s(c))];
            cases.push(case(format!("y = Gemm(a, b, c{settings})"), feeds).within(4e-6));
        }
        let feeds = vec![("a", f32s(a)), ("b", f32s(b))];
        cases.push(case(format!("y = Gemm(a, b{settings})"), feeds).within(4e-6));
    }
    for [a, b] in [[&[5, 70][..], &[70, 33][..]], [&[2, 3, 8], &[8, 4]], [&[2, 3, 8], &[2, 8, 4]]] {
        let pairs = [
            (bytes_u8(a), weights_i8(b), Tensor::scalar(7_u8), Tensor::scalar(0_i8)),
            (bytes_u8(a), bytes_u8(b), Tensor::scalar(130_u8), Tensor::scalar(120_u8)),
            (bytes_u8(a), weights_i8(b), Tensor::scalar(255_u8), Tensor::scalar(-9_i8)),
        ];
        for (x, w, x_zero, w_zero) in pairs {
            let feeds = vec![("a", x.clone()), ("b", w.clone()), ("p", x_zero), ("q", w_zero)];
            cases.push(case("y = MatMulInteger(a, b, p, q)", feeds).exact());
            let feeds = vec![("a", x), ("b", w)];
            cases.push(case("y = MatMulInteger(a, b)", feeds).exact());
        }
    }
    cases
}
