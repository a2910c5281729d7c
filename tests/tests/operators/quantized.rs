//! Quantizing and dequantizing.

use attar_tensor::Tensor;

use crate::case::*;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for x in [f32s(&[7]), f32s(&[3, 40]), Tensor::new(&[5], &[0.5_f32, 1.5, -2.5, 1e9, -1e9])] {
        for (scale, zero) in [(0.02_f32, 3_u8), (1.0, 0), (0.5, 255)] {
            let feeds = || {
                vec![("x", x.clone()), ("s", Tensor::scalar(scale)), ("z", Tensor::scalar(zero))]
            };
            cases.push(case("y = QuantizeLinear(x, s, z)", feeds()).exact());
            let mut feeds = feeds();
            feeds[2].1 = Tensor::scalar(zero as i8);
            cases.push(case("y = QuantizeLinear(x, s, z)", feeds).exact());
        }
        let feeds = vec![("x", x.clone()), ("s", Tensor::scalar(0.1_f32))];
        cases.push(case("y = QuantizeLinear(x, s)", feeds).exact());
        cases.push(case("q, s, z = DynamicQuantizeLinear(x)", vec![("x", x)]).exact());
    }
    let zeros = Tensor::new(&[4], &[0.0_f32; 4]);
    cases.push(case("q, s, z = DynamicQuantizeLinear(x)", vec![("x", zeros)]).exact());
    for (axis, size) in [(0, 2), (1, 3), (-1, 4)] {
        let scales = positive(&[size]);
        let zero = bytes_i8(&[size]);
        let feeds = vec![("x", f32s(&[2, 3, 4])), ("s", scales.clone()), ("z", zero.clone())];
        cases.push(case(format!("y = QuantizeLinear(x, s, z, axis={axis})"), feeds).exact());
        let feeds = vec![("x", bytes_i8(&[2, 3, 4])), ("s", scales.clone()), ("z", zero)];
        cases.push(case(format!("y = DequantizeLinear(x, s, z, axis={axis})"), feeds).exact());
        let integers =
            Tensor::new(&[2, 3, 4], &(0..24).map(|i| i * 1000 - 9000).collect::<Vec<i32>>());
        let feeds = vec![("x", integers), ("s", scales)];
        cases.push(case(format!("y = DequantizeLinear(x, s, axis={axis})"), feeds).exact());
    }
    let feeds = vec![
        ("x", bytes_u8(&[3, 50])),
        ("s", Tensor::scalar(0.07_f32)),
        ("z", Tensor::scalar(9_u8)),
    ];
    cases.push(case("y = DequantizeLinear(x, s, z)", feeds).exact());
    cases
}
