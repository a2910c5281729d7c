//! What ONNX Runtime's optimizer writes in place of groups of standard operators.

use attar_tensor::Tensor;

use crate::case::*;

fn microsoft(text: impl Into<String>, feeds: Vec<(&'static str, Tensor)>) -> Case {
    case(text, feeds).domain("com.microsoft", 1)
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // GELU by a polynomial here and by a rational function there.
    for shape in [&[3, 8][..], &[2, 5, 384], &[1, 1]] {
        let size = shape[shape.len() - 1];
        let x = || vec![("x", f32s(shape))];
        let biased = || vec![("x", f32s(shape)), ("b", f32s(&[size]))];
        cases.push(microsoft("y = Gelu(x)", x()));
        cases.push(microsoft("y = FastGelu(x)", x()));
        cases.push(microsoft("y = FastGelu(x, b)", biased()));
        cases.push(microsoft("y = BiasGelu(x, b)", biased()));
        cases.push(microsoft("y = QuickGelu(x)", x()));
        cases.push(microsoft("y = QuickGelu(x, alpha=1.0)", x()));
    }
    products(&mut cases);
    normalizations(&mut cases);
    cases
}

fn products(cases: &mut Vec<Case>) {
    for (a, b, settings) in [
        (&[3, 5][..], &[5, 4][..], "alpha=0.5"),
        (&[5, 3], &[5, 4], "transA=1"),
        (&[2, 3, 5], &[2, 4, 5], "transB=1, alpha=0.125"),
        (&[2, 5, 3], &[4, 5], "transA=1, transB=1"),
        (&[2, 6, 3, 5], &[2, 6, 4, 5], "transB=1, alpha=2.0"),
        (&[3, 2, 5], &[2, 5, 4], "transBatchA=1"),
        (&[3, 2, 6, 5], &[2, 6, 5, 4], "transBatchA=1"),
        (&[3, 2, 5], &[5, 2, 4], "transBatchA=1, transBatchB=1"),
        (&[5, 2, 3], &[2, 5, 4], "transBatchA=1, transA=1"),
    ] {
        let text = format!("y = FusedMatMul(a, b, {settings})");
        let feeds = vec![("a", f32s(a)), ("b", f32s(b))];
        let made = microsoft(text, feeds).within(4e-6);
        cases.push(made.clone());
        cases.push(made.constant(&["b"]));
    }
    for activation in ["Relu", "Tanh", "Sigmoid"] {
        let text = format!("y = FusedGemm(a, b, c, transB=1, alpha=0.5, activation={activation})");
        let feeds = vec![("a", f32s(&[3, 7])), ("b", f32s(&[5, 7])), ("c", f32s(&[5]))];
        cases.push(microsoft(text, feeds).within(4e-6));
    }
}

fn normalizations(cases: &mut Vec<Case>) {
    for shape in [&[2, 3, 16][..], &[1, 1, 384]] {
        let size = shape[2];
        for skip in [shape.to_vec(), vec![1, shape[1], size]] {
            let feeds = [
                ("x", f32s(shape)),
                ("s", positive(&skip)),
                ("g", f32s(&[size])),
                ("h", positive(&[size])),
                ("b", f32s(&[size])),
            ];
            let make = |text: &str, names: &[&str]| {
                let feeds = feeds.iter().filter(|(name, _)| names.contains(name)).cloned();
                microsoft(text, feeds.collect()).within(5e-6)
            };
            let text = "y = SkipLayerNormalization(x, s, g, h, b, epsilon=0.00001)";
            cases.push(make(text, &["x", "s", "g", "h", "b"]));
            cases.push(make("y = SkipLayerNormalization(x, s, g, h)", &["x", "s", "g", "h"]));
            cases.push(make("y = SkipLayerNormalization(x, s, g)", &["x", "s", "g"]));
            let text = "y, , , z = SkipLayerNormalization(x, s, g, h)";
            cases.push(make(text, &["x", "s", "g", "h"]));
            let text = "y, , , z = SkipSimplifiedLayerNormalization(x, s, g, b)";
            cases.push(make(text, &["x", "s", "g", "b"]));
            let text = "y = SkipSimplifiedLayerNormalization(x, s, g, epsilon=0.001)";
            cases.push(make(text, &["x", "s", "g"]));
        }
        let feeds = vec![("x", f32s(shape)), ("g", f32s(&[size]))];
        let text = "y = SimplifiedLayerNormalization(x, g, epsilon=0.001)";
        cases.push(case(text, feeds).within(5e-6));
    }
    let ids = Tensor::new(&[2, 3], &[0_i32, 4, 2, 1, 1, 3]);
    let feeds = vec![
        ("i", ids.clone()),
        ("s", Tensor::new(&[2, 3], &[0_i32, 1, 1, 0, 0, 1])),
        ("w", f32s(&[5, 8])),
        ("p", positive(&[6, 8])),
        ("t", f32s(&[2, 8])),
        ("g", f32s(&[8])),
        ("b", f32s(&[8])),
        ("m", Tensor::new(&[2, 3], &[1_i32, 1, 0, 1, 1, 1])),
        ("o", Tensor::new(&[2, 3], &[5_i32, 4, 3, 0, 1, 2])),
    ];
    for (text, names) in [
        ("y, n = EmbedLayerNormalization(i, s, w, p, t, g, b, m)", "iswptgbm"),
        ("y, n = EmbedLayerNormalization(i, s, w, p, t, g, b)", "iswptgb"),
        ("y, n = EmbedLayerNormalization(i, , w, p, , g, b, m, epsilon=0.00001)", "iwpgbm"),
        ("y, n, z = EmbedLayerNormalization(i, s, w, p, t, g, b, m, o)", "iswptgbmo"),
    ] {
        let feeds = feeds.iter().filter(|(name, _)| names.contains(name)).cloned();
        cases.push(microsoft(text, feeds.collect()).within(5e-6));
    }
}
