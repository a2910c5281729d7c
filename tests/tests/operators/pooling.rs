//! Pooling over windows and over whole planes.

use crate::case::*;

/// (input, settings) of windows.
const WINDOWS: &[(&[usize], &str)] = &[
    (&[1, 3, 8, 9], "kernel_shape=2,2"),
    (&[2, 3, 8, 9], "kernel_shape=2,2, strides=2,2"),
    (&[2, 3, 17, 33], "kernel_shape=3,3, strides=2,2, pads=1,1,1,1"),
    (&[1, 3, 9, 40], "kernel_shape=3,3, pads=1,1,1,1"),
    (&[1, 2, 9, 10], "kernel_shape=3,2, strides=3,4, pads=0,1,2,1"),
    (&[1, 2, 12, 13], "kernel_shape=4,5, strides=1,2, pads=2,2,1,1"),
    (&[1, 2, 9, 10], "kernel_shape=3,3, auto_pad=SAME_UPPER, strides=2,2"),
    (&[1, 2, 9, 10], "kernel_shape=2,4, auto_pad=SAME_LOWER, strides=2,2"),
    (&[1, 2, 9, 10], "kernel_shape=3,3, auto_pad=VALID, strides=2,2"),
    (&[2, 3, 20], "kernel_shape=3, strides=2, pads=1,1"),
    (&[2, 3, 20], "kernel_shape=5"),
    (&[1, 2, 5, 6, 7], "kernel_shape=2,3,2, strides=1,2,2, pads=0,1,1,1,1,0"),
];

const CEILED: &[(&[usize], &str)] = &[
    (&[1, 2, 8, 9], "kernel_shape=3,3, strides=2,2, ceil_mode=1"),
    (&[1, 2, 7, 10], "kernel_shape=2,2, strides=2,3, ceil_mode=1"),
    (&[1, 2, 8, 9], "kernel_shape=3,3, strides=2,2, pads=1,1,1,1, ceil_mode=1"),
];

const DILATED: &[(&[usize], &str)] = &[
    (&[1, 2, 12, 13], "kernel_shape=3,3, dilations=2,2"),
    (&[1, 2, 12, 13], "kernel_shape=3,2, dilations=2,3, strides=2,2, pads=1,1,1,1"),
    (&[1, 2, 20], "kernel_shape=3, dilations=4, strides=3"),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (shape, settings) in WINDOWS.iter().chain(CEILED).chain(DILATED) {
        let feeds = || vec![("x", f32s(shape))];
        cases.push(case(format!("y = MaxPool(x, {settings})"), feeds()).exact());
        cases.push(case(format!("y, i = MaxPool(x, {settings})"), feeds()).exact());
        let column = format!("y, i = MaxPool(x, {settings}, storage_order=1)");
        cases.push(case(column, feeds()).exact());
        let bytes = vec![("x", bytes_u8(shape))];
        cases.push(case(format!("y = MaxPool(x, {settings})"), bytes).exact());
        let bytes = vec![("x", bytes_i8(shape))];
        cases.push(case(format!("y = MaxPool(x, {settings})"), bytes).exact());
    }
    for (shape, settings) in WINDOWS.iter().chain(CEILED).chain(DILATED) {
        for counted in ["", ", count_include_pad=1"] {
            let text = format!("y = AveragePool(x, {settings}{counted})");
            cases.push(case(text, vec![("x", f32s(shape))]).opset(19));
        }
    }
    for (shape, settings) in WINDOWS {
        for p in [1, 2, 3] {
            let text = format!("y = LpPool(x, {settings}, p={p})");
            cases.push(case(text, vec![("x", f32s(shape))]).opset(18).within(4e-6));
        }
    }
    for shape in [&[2, 3, 7, 7][..], &[1, 5, 9], &[1, 2, 3, 4, 5], &[1, 8, 56, 56]] {
        for text in [
            "y = GlobalAveragePool(x)",
            "y = GlobalMaxPool(x)",
            "y = GlobalLpPool(x)",
            "y = GlobalLpPool(x, p=1)",
            "y = GlobalLpPool(x, p=3)",
        ] {
            cases.push(case(text, vec![("x", f32s(shape))]).within(4e-6));
        }
    }
    // Sizes that the unpooling finds again.
    for (shape, settings) in [
        (&[1, 2, 8, 10], "kernel_shape=2,2, strides=2,2"),
        (&[1, 2, 7, 9], "kernel_shape=3,3, strides=2,2, pads=1,1,1,1"),
    ] {
        let text = format!("p, i = MaxPool(x, {settings})\ny = MaxUnpool(p, i, {settings})");
        cases.push(case(text, vec![("x", f32s(shape))]).exact());
    }
    cases
}
