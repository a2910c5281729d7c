//! Operators over quantized tensors.

use attar_tensor::{DType, Tensor};

use crate::case::*;

/// One level where the largest is at least half of the range: ONNX Runtime adds in another order
/// on each instruction set, and a value may fall on the other side of a half.
const LEVEL: f64 = 1.0 / 120.0;

fn microsoft(text: impl Into<String>, feeds: Vec<(&'static str, Tensor)>) -> Case {
    case(text, feeds).domain("com.microsoft", 1)
}

fn bytes(dtype: DType, shape: &[usize]) -> Tensor {
    if dtype == DType::U8 { bytes_u8(shape) } else { bytes_i8(shape) }
}

fn weights(dtype: DType, shape: &[usize]) -> Tensor {
    if dtype == DType::U8 { bytes_u8(shape) } else { weights_i8(shape) }
}

fn zero(dtype: DType, value: u8) -> Tensor {
    if dtype == DType::U8 { Tensor::scalar(value) } else { Tensor::scalar(value as i8) }
}

fn zeros(dtype: DType, count: usize) -> Tensor {
    let values: Vec<u8> = (0..count).map(|i| (i * 3 % 7) as u8).collect();
    let signed: Vec<i8> = values.iter().map(|&value| value as i8 - 3).collect();
    if dtype == DType::U8 { Tensor::new(&[count], &values) } else { Tensor::new(&[count], &signed) }
}

fn scalar(value: f32) -> Tensor {
    Tensor::scalar(value)
}

fn products(cases: &mut Vec<Case>) {
    let types = [
        (DType::U8, DType::I8, DType::U8),
        (DType::U8, DType::U8, DType::U8),
        (DType::I8, DType::I8, DType::I8),
    ];
    for (a, b, y) in types {
        for [left, right] in
            [[&[5, 70][..], &[70, 33][..]], [&[2, 3, 8], &[8, 4]], [&[2, 3, 8], &[2, 8, 4]]]
        {
            let n = right[right.len() - 1];
            let mut scales = vec![scalar(0.003)];
            if right.len() == 2 {
                scales.push(positive(&[n]));
            }
            for b_scale in scales {
                let b_zero = if b_scale.rank() == 1 { zeros(b, n) } else { zero(b, 4) };
                let y_scale = if b_scale.rank() == 1 { 2.0 } else { 0.05 };
                let feeds = vec![
                    ("a", bytes(a, left)),
                    ("as", scalar(0.02)),
                    ("az", zero(a, 100)),
                    ("b", weights(b, right)),
                    ("bs", b_scale),
                    ("bz", b_zero),
                    ("ys", scalar(y_scale)),
                    ("yz", zero(y, 110)),
                ];
                let made = case("y = QLinearMatMul(a, as, az, b, bs, bz, ys, yz)", feeds).exact();
                cases.push(made.clone());
                cases.push(made.constant(&["b", "bs", "bz"]));
            }
        }
        for (left, right, settings) in
            [(&[5, 30], &[30, 9], ""), (&[30, 5], &[9, 30], ", transA=1, transB=1, alpha=0.5")]
        {
            let mut feeds = vec![
                ("a", bytes(a, left)),
                ("as", scalar(0.02)),
                ("az", zero(a, 100)),
                ("b", weights(b, right)),
                ("bs", scalar(0.01)),
                ("bz", zero(b, 4)),
                ("c", Tensor::new(&[9], &(0..9).map(|i| i * 500 - 2000).collect::<Vec<i32>>())),
            ];
            let text = format!("y = QGemm(a, as, az, b, bs, bz, c{settings})");
            let float = microsoft(text, feeds.clone());
            cases.push(float.clone());
            cases.push(float.constant(&["b", "bs", "bz"]));
            feeds.push(("ys", scalar(0.5)));
            feeds.push(("yz", zero(y, 110)));
            let text = format!("y = QGemm(a, as, az, b, bs, bz, c, ys, yz{settings})");
            cases.push(microsoft(text, feeds).exact());
        }
        to_float(cases, a, b);
    }
}

fn to_float(cases: &mut Vec<Case>, a: DType, b: DType) {
    for [left, right] in [[&[5, 70][..], &[70, 33][..]], [&[2, 3, 8], &[8, 4]]] {
        let n = right[1];
        for (b_scale, b_zero) in [(scalar(0.003), zero(b, 4)), (positive(&[n]), zeros(b, n))] {
            let feeds = vec![
                ("a", bytes(a, left)),
                ("b", weights(b, right)),
                ("as", scalar(0.02)),
                ("bs", b_scale.clone()),
                ("az", zero(a, 100)),
                ("bz", b_zero.clone()),
                ("c", f32s(&[n])),
            ];
            let text = "y = MatMulIntegerToFloat(a, b, as, bs, az, bz, c)";
            let made = microsoft(text, feeds.clone());
            cases.push(made.clone());
            cases.push(made.constant(&["b", "bs", "bz", "c"]));
            let short = microsoft("y = MatMulIntegerToFloat(a, b, as, bs)", feeds[..4].to_vec());
            cases.push(short);
            if a == DType::U8 {
                let mut feeds = feeds;
                feeds[0].1 = f32s(left);
                feeds.retain(|(name, _)| !matches!(*name, "as" | "az"));
                let text = "y = DynamicQuantizeMatMul(a, b, bs, bz, c)";
                let made = microsoft(text, feeds.clone());
                cases.push(made.clone());
                cases.push(made.constant(&["b", "bs", "bz", "c"]));
                let text = "y = DynamicQuantizeMatMul(a, b, bs)";
                cases.push(microsoft(text, feeds[..3].to_vec()));
            }
        }
    }
}

fn elementwise(cases: &mut Vec<Case>) {
    for dtype in [DType::U8, DType::I8] {
        for [a, b] in [
            [&[3, 40][..], &[3, 40][..]],
            [&[2, 3, 5], &[5]],
            [&[4, 1, 3], &[1, 2, 3]],
            [&[7], &[1]],
        ] {
            for op in ["QLinearAdd", "QLinearMul"] {
                let feeds = vec![
                    ("a", bytes(dtype, a)),
                    ("as", scalar(0.02)),
                    ("az", zero(dtype, 100)),
                    ("b", bytes(dtype, b)),
                    ("bs", scalar(0.031)),
                    ("bz", zero(dtype, 7)),
                    ("ys", scalar(0.047)),
                    ("yz", zero(dtype, 90)),
                ];
                let text = format!("y = {op}(a, as, az, b, bs, bz, ys, yz)");
                cases.push(microsoft(text, feeds).within(LEVEL));
            }
        }
        let every: Vec<u8> = (0..=255).collect();
        let every = match dtype {
            DType::U8 => Tensor::new(&[4, 64], &every),
            _ => Tensor::new(&[4, 64], &every.iter().map(|&x| x as i8).collect::<Vec<_>>()),
        };
        let feeds = vec![
            ("x", every.clone()),
            ("xs", scalar(0.04)),
            ("xz", zero(dtype, 100)),
            ("ys", scalar(0.0039)),
            ("yz", zero(dtype, 3)),
        ];
        for call in
            ["QLinearSigmoid(x, xs, xz, ys, yz)", "QLinearLeakyRelu(x, xs, xz, ys, yz, alpha=0.2)"]
        {
            cases.push(microsoft(format!("y = {call}"), feeds.clone()).exact());
        }
        for (shape, settings) in [
            (&[5, 9][..], "axis=-1, opset=13"),
            (&[2, 3, 4], "axis=1, opset=13"),
            (&[2, 3, 4], "axis=1, opset=11"),
        ] {
            let y_zero = if dtype == DType::U8 { zero(dtype, 0) } else { zero(dtype, 128) };
            let feeds = vec![
                ("x", bytes(dtype, shape)),
                ("xs", scalar(0.03)),
                ("xz", zero(dtype, 10)),
                ("ys", scalar(1.0 / 256.0)),
                ("yz", y_zero),
            ];
            // The table of powers is made when the model is loaded: scales are constant.
            let text = format!("y = QLinearSoftmax(x, xs, xz, ys, yz, {settings})");
            cases.push(microsoft(text, feeds).constant(&["xs", "xz", "ys", "yz"]).exact());
        }
        let feeds = vec![
            ("ys", scalar(0.05)),
            ("yz", zero(dtype, 80)),
            ("a", bytes(dtype, &[2, 3, 4])),
            ("as", scalar(0.05)),
            ("az", zero(dtype, 80)),
            ("b", bytes(dtype, &[2, 2, 4])),
            ("bs", scalar(0.021)),
            ("bz", zero(dtype, 9)),
        ];
        let text = "y = QLinearConcat(ys, yz, a, as, az, b, bs, bz, axis=1)";
        let made = microsoft(text, feeds).exact();
        cases.push(made.clone());
        cases.push(made.constant(&["as", "az", "bs", "bz", "ys", "yz"]));
    }
}

fn pools(cases: &mut Vec<Case>) {
    for (dtype, shape, settings) in [
        (DType::U8, &[2, 3, 7, 5][..], ""),
        (DType::I8, &[1, 4, 6, 6], ""),
        (DType::U8, &[2, 7, 5, 3], ", channels_last=1"),
    ] {
        let feeds = vec![
            ("x", bytes(dtype, shape)),
            ("xs", scalar(0.03)),
            ("xz", zero(dtype, 100)),
            ("ys", scalar(0.011)),
            ("yz", zero(dtype, 90)),
        ];
        let text = format!("y = QLinearGlobalAveragePool(x, xs, xz, ys, yz{settings})");
        cases.push(microsoft(text, feeds.clone()).exact());
        for window in [
            "kernel_shape=3,3",
            "kernel_shape=2,3, strides=2,1, pads=0,1,1,0",
            "kernel_shape=3,2, strides=2,2, pads=1,1,1,1, count_include_pad=1",
            "kernel_shape=2,2, strides=2,2, ceil_mode=1",
            "kernel_shape=3,3, strides=2,2, auto_pad=SAME_UPPER",
        ] {
            let text = format!("y = QLinearAveragePool(x, xs, xz, ys, yz, {window}{settings})");
            cases.push(microsoft(text, feeds.clone()).within(LEVEL));
        }
    }
}

fn blocks(cases: &mut Vec<Case>) {
    for (bits, k, n, block, rows) in [
        (4, 64, 10, 32, 3),
        (4, 70, 9, 16, 1),
        (4, 128, 33, 64, 5),
        (8, 64, 12, 32, 4),
        (2, 64, 12, 32, 4),
    ] {
        let count = usize::div_ceil(k, block);
        let mut feeds = vec![
            ("a", f32s(&[rows, k])),
            ("b", bytes_u8(&[n, count, block * bits / 8])),
            ("s", positive(&[n * count])),
        ];
        let settings = format!("K={k}, N={n}, bits={bits}, block_size={block}");
        let make = |text: String, feeds: &[(&'static str, Tensor)]| {
            let text = format!("{text}, {settings})");
            microsoft(text, feeds.to_vec()).within(4e-6).constant(&["b", "s", "z", "c"])
        };
        cases.push(make("y = MatMulNBits(a, b, s".into(), &feeds));
        let row_bytes = (count * bits).div_ceil(8);
        feeds.push(("z", bytes_u8(&[n * row_bytes])));
        cases.push(make("y = MatMulNBits(a, b, s, z".into(), &feeds));
        feeds.push(("c", f32s(&[n])));
        cases.push(make("y = MatMulNBits(a, b, s, z, , c".into(), &feeds));
    }
    for (bits, settings) in [(4, "bits=4"), (8, "bits=8")] {
        let values = 8 / bits;
        let feeds = vec![
            ("d", bytes_u8(&[5, 64 / values])),
            ("i", Tensor::new(&[2, 2], &[4_i64, 0, 3, 3])),
            ("s", positive(&[5, 2])),
            ("z", bytes_u8(&[5, 2 / values])),
        ];
        let settings = format!("gather_axis=0, quantize_axis=1, block_size=32, {settings}");
        let text = format!("y = GatherBlockQuantized(d, i, s, {settings})");
        cases.push(microsoft(text, feeds[..3].to_vec()).constant(&["d", "s"]));
        let text = format!("y = GatherBlockQuantized(d, i, s, z, {settings})");
        cases.push(microsoft(text, feeds).constant(&["d", "s", "z"]));
        // A last block that is not whole.
        let feeds = vec![
            ("d", bytes_u8(&[3, 80 / values])),
            ("i", Tensor::new(&[4], &[2_i64, 1, 1, 0])),
            ("s", positive(&[3, 3])),
        ];
        let text = format!("y = GatherBlockQuantized(d, i, s, {settings})");
        cases.push(microsoft(text, feeds).constant(&["d", "s"]));
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    products(&mut cases);
    elementwise(&mut cases);
    pools(&mut cases);
    blocks(&mut cases);
    for zero in [Tensor::scalar(1000_u16), Tensor::scalar(-7_i16), Tensor::scalar(9_u8)] {
        let text = "q = QuantizeLinear(x, s, z)\ny = DequantizeLinear(q, s, z)";
        let feeds = vec![("x", f32s(&[3, 40])), ("s", scalar(0.01)), ("z", zero)];
        cases.push(microsoft(text, feeds).exact());
    }
    for dtype in [DType::I8, DType::U8] {
        let feeds = vec![
            ("a", bytes_u8(&[5, 70])),
            ("b", weights(dtype, &[70, 33])),
            ("p", Tensor::scalar(7_u8)),
            ("q", zeros(dtype, 33)),
        ];
        let made = case("y = MatMulInteger(a, b, p, q)", feeds).exact();
        cases.push(made.clone());
        cases.push(made.constant(&["b", "q"]));
    }
    cases
}
