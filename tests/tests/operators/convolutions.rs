//! Convolutions of every rank and kind, alone and with what is fused into them.

use attar_tensor::Tensor;

use crate::case::*;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(dense());
    cases.extend(transposed());
    cases.extend(fused());
    cases.extend(normalized());
    cases.extend(integers());
    cases.extend(deformed());
    cases.extend(of_microsoft());
    cases
}

/// (input, weight, settings)
type Shapes = (&'static [usize], &'static [usize], &'static str);

fn dense() -> Vec<Case> {
    let shapes: &[Shapes] = &[
        (&[1, 2, 5, 6, 7], &[4, 2, 3, 3, 3], ", pads=1,1,1,1,1,1"),
        (&[2, 4, 5, 6, 7], &[4, 1, 2, 3, 2], ", group=4, strides=1,2,2"),
        (&[1, 4, 6, 6, 6], &[6, 2, 3, 2, 1], ", group=2, dilations=2,1,1, pads=2,0,1,2,1,0"),
        (&[1, 2, 3, 4, 4, 5], &[3, 2, 2, 2, 2, 2], ""),
        (&[3, 5, 64], &[33, 5, 7], ", dilations=3, pads=9,9"),
        (&[1, 130, 9, 20], &[70, 130, 3, 3], ", pads=1,1,1,1"),
        (&[1, 3, 40, 41], &[17, 3, 5, 5], ", strides=2,2, pads=2,2,2,2"),
        (&[2, 20, 15, 16], &[20, 1, 5, 5], ", group=20, pads=2,2,2,2, strides=2,1"),
        (&[1, 17, 3, 4], &[17, 1, 3, 3], ", group=17, pads=3,3,3,3"),
        (&[1, 8, 9, 9], &[40, 4, 3, 3], ", group=2, auto_pad=SAME_LOWER, strides=2,2"),
        (&[1, 1, 576], &[258, 1, 256], ", strides=128"),
    ];
    let mut cases = Vec::new();
    for (x, w, settings) in shapes {
        let text = format!("y = Conv(x, w, b{settings})");
        let feeds = vec![("x", f32s(x)), ("w", f32s(w)), ("b", f32s(&w[..1]))];
        cases.push(case(&text, feeds).within(4e-6));
        let mut constant = case(&text, vec![("x", f32s(x))]).within(4e-6);
        constant.constants = vec![("w", f32s(w)), ("b", f32s(&w[..1]))];
        cases.push(constant);
    }
    cases
}

fn transposed() -> Vec<Case> {
    let shapes: &[Shapes] = &[
        (&[1, 3, 4, 5], &[3, 4, 3, 3], ""),
        (&[2, 24, 7, 6], &[24, 24, 2, 2], ", strides=2,2"),
        (&[1, 4, 5, 5], &[4, 3, 3, 3], ", group=2, strides=2,2, pads=1,1,1,1, output_padding=1,1"),
        (&[1, 2, 5, 6], &[2, 3, 3, 2], ", dilations=2,3, strides=3,2, pads=1,0,2,1"),
        (&[1, 2, 6], &[2, 3, 4], ", strides=3, output_padding=2"),
        (&[1, 2, 3, 4, 3], &[2, 2, 2, 3, 2], ", strides=2,1,2"),
        (&[1, 2, 5, 5], &[2, 3, 3, 3], ", strides=2,2, output_shape=10,12"),
        (&[1, 2, 5, 5], &[2, 3, 3, 3], ", strides=2,2, auto_pad=SAME_UPPER"),
        (&[1, 2, 5, 5], &[2, 3, 3, 3], ", strides=2,2, auto_pad=SAME_LOWER"),
        (&[1, 6, 5, 5], &[6, 1, 3, 3], ", group=6, strides=2,2, auto_pad=VALID"),
    ];
    let mut cases = Vec::new();
    for (x, w, settings) in shapes {
        let group =
            settings.split("group=").nth(1).map_or(1, |g| (g.as_bytes()[0] - b'0') as usize);
        let text = format!("y = ConvTranspose(x, w{settings})");
        let feeds = vec![("x", f32s(x)), ("w", f32s(w))];
        cases.push(case(&text, feeds.clone()).within(4e-6));
        let text = format!("y = ConvTranspose(x, w, b{settings})");
        let feeds = [feeds, vec![("b", f32s(&[w[1] * group]))]].concat();
        cases.push(case(&text, feeds).within(4e-6));
    }
    cases
}

/// What the fusion for running takes into a convolution.
fn fused() -> Vec<Case> {
    let tails = [
        "y = Relu(a)",
        "y = LeakyRelu(a, alpha=0.2)",
        "y = HardSigmoid(a, alpha=0.3)",
        "y = HardSwish(a)",
        "s = Sigmoid(a)\ny = Mul(a, s)",
        "y = Tanh(a)",
        "m = Mul(a, two)\nn = Add(m, three)\ns = Add(n, r)\nt = Relu(s)\nu = Mul(t, two)\ny = Add(u, three)",
        "n = Add(a, three)\nc = Clip(n, zero, six)\nm = Mul(a, c)\ny = Div(m, six)",
        "n = Sub(a, each)\nd = Div(n, six)\ny = Add(r, d)",
        "g = GlobalAveragePool(a)\nh = HardSigmoid(g)\ny = Mul(a, h)",
        "h = Relu(a)\ny = Concat(h, r, axis=1)",
        "h = Transpose(a, perm=0,2,3,1)\ny = Softmax(h)",
        "h = Conv(a, v, pads=1,1,1,1)\ni = Add(h, a)\nj = ConvTranspose(i, v)\ny = Mul(j, each)",
        "h = Exp(a)\ni = Shape(h)\nj = Sqrt(h)\ny = Reshape(j, i)",
    ];
    let scalar = |value: f32| Tensor::new(&[1], &[value]);
    let mut cases = Vec::new();
    for tail in tails {
        for (weight, settings) in [([20, 20, 3, 3], ""), ([20, 1, 3, 3], ", group=20")] {
            let text = format!("a = Conv(x, w, b, pads=1,1,1,1{settings})\n{tail}");
            let mut feeds = vec![("x", f32s(&[2, 20, 9, 11]))];
            if tail.contains(" r") || tail.contains("(r") {
                feeds.push(("r", f32s(&[2, 20, 9, 11])));
            }
            let mut case = case(text, feeds).within(1e-5);
            for (name, tensor) in [
                ("w", f32s(&weight)),
                ("b", f32s(&[20])),
                ("v", f32s(&[20, 20, 3, 3])),
                ("each", f32s(&[1, 20, 1, 1])),
                ("zero", Tensor::scalar(0.0_f32)),
                ("two", scalar(2.0)),
                ("three", scalar(3.0)),
                ("six", Tensor::scalar(6.0_f32)),
            ] {
                let is_read = case.text.contains(&format!("{name},"))
                    || case.text.contains(&format!(" {name})"));
                if is_read {
                    case.constants.push((name, tensor));
                }
            }
            cases.push(case);
        }
    }
    cases
}

/// Small networks of convolutions, normalizations and activations, as they are trained.
fn normalized() -> Vec<Case> {
    let inverted = "a = Conv(x, w)\nb = BatchNormalization(a, s, o, m, v)\nc = Clip(b, zero, six)
        d = Conv(c, u, group=20, pads=1,1,1,1, strides=2,2)\ne = BatchNormalization(d, t, o, m, v)
        f = HardSwish(e)\ng = Conv(f, p)\ny = BatchNormalization(g, q, r, n, k)";
    let residual = "a = Conv(x, w)\nb = BatchNormalization(a, s, o, m, v)\nc = Relu(b)
        d = Conv(c, h, pads=1,1,1,1)\ne = BatchNormalization(d, t, o, m, v)\nf = Add(e, c)
        g = Relu(f)\ni = GlobalAveragePool(g)\nj = Mul(i, s4)\nl = Add(j, o3)\ny = Flatten(l)";
    let plain = "a = Conv(x, w, o)\nb = Relu(a)\nc = Conv(b, u, group=20, strides=2,1)
        y = MaxPool(c, kernel_shape=2,2)";
    let mut cases = Vec::new();
    for text in [inverted, residual, plain] {
        let parameters = [
            ("x", f32s(&[2, 6, 7, 6])),
            ("w", f32s(&[20, 6, 1, 1])),
            ("u", f32s(&[20, 1, 3, 3])),
            ("h", f32s(&[20, 20, 3, 3])),
            ("p", f32s(&[5, 20, 1, 1])),
            ("s", f32s(&[20])),
            ("t", positive(&[20])),
            ("o", f32s(&[20])),
            ("q", f32s(&[5])),
            ("r", f32s(&[5])),
            ("s4", f32s(&[1, 20, 1, 1])),
            ("o3", f32s(&[20, 1, 1])),
            ("m", f32s(&[20])),
            ("v", positive(&[20])),
            ("n", f32s(&[5])),
            ("k", positive(&[5])),
            ("zero", Tensor::scalar(0.0_f32)),
            ("six", Tensor::scalar(2.0_f32)),
        ];
        let is_read =
            |name: &str| text.contains(&format!(" {name},")) || text.contains(&format!(" {name})"));
        let feeds = parameters.into_iter().filter(|(name, _)| *name == "x" || is_read(name));
        let all = case(text, feeds.collect()).within(3e-5);
        let statistics = ["m", "v", "n", "k", "zero", "six"];
        cases.push(all.clone().constant(&statistics));
        cases.push(all.constant(&[&statistics[..], &["s", "t", "o", "q", "r"]].concat()));
    }
    cases
}

fn integers() -> Vec<Case> {
    let shapes: &[Shapes] = &[
        (&[1, 3, 8, 9], &[4, 3, 3, 3], ", pads=1,1,1,1"),
        (&[2, 4, 7, 7], &[6, 2, 3, 2], ", group=2, strides=2,1"),
        (&[1, 6, 7, 8], &[6, 1, 3, 3], ", group=6, pads=2,1,0,1, dilations=2,1"),
        (&[2, 5, 6, 6], &[9, 5, 1, 1], ""),
        (&[1, 3, 20], &[4, 3, 5], ", pads=2,2"),
        (&[1, 70, 9, 8], &[70, 1, 5, 5], ", group=70, strides=2,2, pads=2,2,2,2"),
        (&[2, 64, 6, 11], &[64, 1, 3, 3], ", group=64, pads=1,1,1,1"),
        (&[1, 17, 5, 5], &[97, 17, 1, 1], ""),
        (&[1, 33, 9, 7], &[48, 33, 1, 1], ", strides=2,2"),
        (&[1, 8, 7, 6], &[130, 4, 3, 3], ", group=2, auto_pad=SAME_UPPER"),
        (&[1, 2, 4, 5, 6], &[3, 2, 2, 3, 2], ", pads=1,0,1,0,1,0"),
    ];
    let mut cases = Vec::new();
    for (x, w, settings) in shapes {
        let text = format!("y = ConvInteger(x, w, p, q{settings})");
        for (w_value, q) in
            [(bytes_u8(w), Tensor::scalar(127_u8)), (weights_i8(w), Tensor::scalar(3_i8))]
        {
            let feeds =
                vec![("x", bytes_u8(x)), ("w", w_value), ("p", Tensor::scalar(7_u8)), ("q", q)];
            cases.push(case(&text, feeds).exact());
        }
        let plain = format!("y = ConvInteger(x, w{settings})");
        cases.push(case(plain, vec![("x", bytes_u8(x)), ("w", bytes_u8(w))]).exact());
        let text = format!("y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz, b{settings})");
        let outputs = w[0];
        let scales: Vec<f32> = (0..outputs).map(|o| 0.004 + 0.001 * o as f32).collect();
        let bias: Vec<i32> = (0..outputs).map(|o| o as i32 * 900 - 1500).collect();
        for per_channel in [false, true] {
            let (ws, wz) = if per_channel {
                (Tensor::new(&[outputs], &scales), Tensor::new(&[outputs], &vec![0_i8; outputs]))
            } else {
                (Tensor::scalar(0.005_f32), Tensor::scalar(2_i8))
            };
            let feeds = vec![
                ("x", bytes_u8(x)),
                ("xs", Tensor::scalar(0.03_f32)),
                ("xz", Tensor::scalar(120_u8)),
                ("ys", Tensor::scalar(0.21_f32)),
                ("yz", Tensor::scalar(100_u8)),
            ];
            let mut case = case(&text, feeds).exact();
            let bias = Tensor::new(&[outputs], &bias);
            case.constants = vec![("w", weights_i8(w)), ("ws", ws), ("wz", wz), ("b", bias)];
            cases.push(case.clone());
            // All but x known, as in a model: fused, and with channels last.
            cases.push(case.constant(&["xs", "xz", "ys", "yz"]));
        }
    }
    cases
}

fn deformed() -> Vec<Case> {
    let mut cases = Vec::new();
    let settings = ", group=2, offset_group=2, pads=1,1,1,1, strides=2,1";
    let feeds = vec![
        ("x", f32s(&[2, 4, 7, 6])),
        ("w", f32s(&[6, 2, 3, 3])),
        ("o", f32s(&[2, 36, 4, 6])),
        ("b", f32s(&[6])),
        ("m", positive(&[2, 18, 4, 6])),
    ];
    let text = format!("y = DeformConv(x, w, o, b, m{settings})");
    cases.push(case(text, feeds.clone()).opset(19).within(4e-6));
    let text = format!("y = DeformConv(x, w, o{settings})");
    cases.push(case(text, feeds[..3].to_vec()).opset(19).within(4e-6));
    cases
}

fn of_microsoft() -> Vec<Case> {
    let mut cases = Vec::new();
    for settings in ["activation=Relu", "activation=Sigmoid", "activation=Tanh"] {
        for inputs in ["x, w", "x, w, b", "x, w, b, r"] {
            let all = [
                ("x", f32s(&[2, 3, 6, 7])),
                ("w", f32s(&[5, 3, 3, 3])),
                ("b", f32s(&[5])),
                ("r", f32s(&[2, 5, 6, 7])),
            ];
            let feeds = all[..inputs.split(',').count()].to_vec();
            let text = format!("y = FusedConv({inputs}, pads=1,1,1,1, {settings})");
            cases.push(case(text, feeds).domain("com.microsoft", 1).within(5e-6));
        }
    }
    cases
}
