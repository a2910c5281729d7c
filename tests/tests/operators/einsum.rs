//! Einsum.

use attar_tensor::DType;

use crate::case::*;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |equation: &str, shapes: &[&[usize]], dtype: DType| {
        let names = ["x", "z", "u"];
        let feeds = names.into_iter().zip(shapes.iter().map(|shape| typed(dtype, shape)));
        let text = format!("y = Einsum({})", names[..shapes.len()].join(", "));
        cases.push(case(text, feeds.collect()).attribute(0, "equation", equation));
    };
    let equations: &[(&str, &[&[usize]])] = &[
        ("ij->ji", &[&[3, 4]]),
        ("ij->", &[&[3, 4]]),
        ("ij->i", &[&[3, 4]]),
        ("ii->i", &[&[4, 4]]),
        ("ii", &[&[4, 4]]),
        ("...ii->...i", &[&[2, 3, 3]]),
        ("b...a->...ab", &[&[2, 5, 6, 3]]),
        ("i,i->i", &[&[5], &[5]]),
        ("i,j->ij", &[&[3], &[4]]),
        ("ij,jk->ik", &[&[3, 40], &[40, 5]]),
        ("ij,jk", &[&[3, 2], &[2, 5]]),
        ("ij,kj->ik", &[&[3, 4], &[5, 4]]),
        ("bij,bjk->bik", &[&[2, 3, 24], &[2, 24, 6]]),
        ("bhid,bhjd->bhij", &[&[2, 4, 5, 32], &[2, 4, 7, 32]]),
        ("bhij,bhjd->bihd", &[&[2, 4, 5, 33], &[2, 4, 33, 8]]),
        ("bqd,dnh->bqnh", &[&[2, 5, 24], &[24, 3, 4]]),
        ("ab,cd->acbd", &[&[2, 3], &[4, 5]]),
        ("ijk,ijk->", &[&[2, 3, 4], &[2, 3, 4]]),
        ("...ij,...jk->...ik", &[&[2, 3, 4], &[2, 4, 5]]),
        ("bij,jk,kl->bil", &[&[2, 3, 4], &[4, 5], &[5, 6]]),
        ("ij,ij,ij->j", &[&[3, 4], &[3, 4], &[3, 4]]),
        ("i,ij,j->", &[&[3], &[3, 20], &[20]]),
    ];
    for (equation, shapes) in equations {
        add(equation, shapes, DType::F32);
    }
    for dtype in [DType::F64, DType::I64, DType::I32] {
        add("ij,jk->ik", &[&[3, 20], &[20, 5]], dtype);
        add("bij,bik->bjk", &[&[2, 3, 4], &[2, 3, 5]], dtype);
    }
    cases
}
