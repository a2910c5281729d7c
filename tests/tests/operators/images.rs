//! Convolution, pooling and batch normalization.

use crate::case::*;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // (input, weight, settings)
    let convolutions: &[(&[usize], &[usize], &str)] = &[
        (&[1, 3, 8, 9], &[4, 3, 3, 3], ""),
        (&[2, 3, 8, 9], &[4, 3, 3, 3], ", pads=1,1,1,1"),
        (&[1, 3, 17, 16], &[5, 3, 3, 3], ", strides=2,2, pads=1,1,1,1"),
        (&[1, 3, 9, 9], &[5, 3, 2, 3], ", strides=2,1, pads=0,1,1,0, dilations=2,1"),
        (&[2, 16, 7, 7], &[24, 16, 1, 1], ""),
        (&[1, 16, 7, 7], &[8, 16, 1, 1], ", strides=2,2"),
        (&[1, 6, 7, 7], &[6, 1, 3, 3], ", group=6, pads=1,1,1,1"),
        (&[2, 6, 14, 13], &[6, 1, 3, 3], ", group=6, pads=1,1,1,1, strides=2,2"),
        (&[1, 6, 14, 13], &[6, 1, 5, 5], ", group=6, pads=2,2,2,2"),
        (&[1, 6, 14, 13], &[6, 1, 3, 3], ", group=6, pads=2,2,2,2, dilations=2,2"),
        (&[1, 6, 15, 13], &[6, 1, 4, 3], ", group=6, pads=0,1,2,1, strides=3,2"),
        (&[1, 6, 8, 8], &[12, 1, 3, 3], ", group=6"),
        (&[1, 6, 8, 8], &[4, 3, 3, 3], ", group=2, pads=1,1,1,1"),
        (&[1, 3, 9, 10], &[4, 3, 3, 3], ", auto_pad=SAME_UPPER, strides=2,2"),
        (&[1, 3, 9, 10], &[4, 3, 4, 4], ", auto_pad=SAME_LOWER"),
        (&[1, 3, 9, 10], &[4, 3, 4, 4], ", auto_pad=VALID"),
        (&[2, 8, 40, 1], &[19, 8, 5, 1], ""),
        (&[2, 6, 40, 1], &[6, 1, 3, 1], ", group=6, pads=1,0,1,0"),
        (&[1, 3, 9, 12, 1], &[4, 3, 3, 2, 1], ""),
        (&[2, 3, 20], &[4, 3, 5], ", pads=2,2, strides=2"),
        (&[2, 4, 20], &[4, 1, 3], ", group=4, pads=1,1"),
        (&[1, 32, 112, 20], &[32, 1, 3, 3], ", group=32, pads=1,1,1,1"),
    ];
    for (x, w, settings) in convolutions {
        let feeds = || vec![("x", f32s(x)), ("w", f32s(w))];
        cases.push(case(format!("y = Conv(x, w{settings})"), feeds()).within(4e-6));
        let mut with_bias = feeds();
        with_bias.push(("b", f32s(&w[..1])));
        cases.push(case(format!("y = Conv(x, w, b{settings})"), with_bias).within(4e-6));
    }
    for shape in [&[2, 3, 4, 5][..], &[1, 3], &[2, 3, 7]] {
        let feeds = vec![
            ("x", f32s(shape)),
            ("s", f32s(&[3])),
            ("b", f32s(&[3])),
            ("m", f32s(&[3])),
            ("v", positive(&[3])),
        ];
        cases.push(case("y = BatchNormalization(x, s, b, m, v, epsilon=0.001)", feeds));
    }
    for shape in [&[2, 3, 7, 7][..], &[1, 5, 9], &[1, 2, 3, 4, 5]] {
        cases.push(case("y = GlobalAveragePool(x)", vec![("x", f32s(shape))]));
    }
    cases
}
