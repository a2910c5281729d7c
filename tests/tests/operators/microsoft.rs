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
        cases.push(microsoft("y = Gelu(x)", x()).in_f64("y = Gelu(x)"));
        let tanh = "y = Gelu(x, approximate=tanh)";
        cases.push(microsoft("y = FastGelu(x)", x()).in_f64(tanh));
        let tanh = "t = Add(x, b)\ny = Gelu(t, approximate=tanh)";
        cases.push(microsoft("y = FastGelu(x, b)", biased()).in_f64(tanh));
        let exact = "t = Add(x, b)\ny = Gelu(t)";
        cases.push(microsoft("y = BiasGelu(x, b)", biased()).in_f64(exact));
        cases.push(microsoft("y = QuickGelu(x)", x()).in_f64("y = Swish(x, alpha=1.702)"));
        let text = "y = QuickGelu(x, alpha=1.0)";
        cases.push(microsoft(text, x()).in_f64("y = Swish(x, alpha=1.0)"));
    }
    products(&mut cases);
    normalizations(&mut cases);
    cases
}

fn products(cases: &mut Vec<Case>) {
    for (a, b, settings, equation) in [
        (&[3, 5][..], &[5, 4][..], "alpha=0.5", "ij,jk->ik"),
        (&[5, 3], &[5, 4], "alpha=1.0, transA=1", "ji,jk->ik"),
        (&[2, 3, 5], &[2, 4, 5], "alpha=0.125, transB=1", "bij,bkj->bik"),
        (&[2, 5, 3], &[4, 5], "alpha=1.0, transA=1, transB=1", "bji,kj->bik"),
        (&[2, 6, 3, 5], &[2, 6, 4, 5], "alpha=2.0, transB=1", "bhij,bhkj->bhik"),
        (&[3, 2, 5], &[2, 5, 4], "alpha=1.0, transBatchA=1", "ibj,bjk->bik"),
        (&[3, 2, 6, 5], &[2, 6, 5, 4], "alpha=1.0, transBatchA=1", "ibhj,bhjk->bhik"),
        (&[3, 2, 5], &[5, 2, 4], "alpha=1.0, transBatchA=1, transBatchB=1", "ibj,jbk->bik"),
        (&[5, 2, 3], &[2, 5, 4], "alpha=1.0, transBatchA=1, transA=1", "jbi,bjk->bik"),
    ] {
        let text = format!("y = FusedMatMul(a, b, {settings})");
        let feeds = vec![("a", f32s(a)), ("b", f32s(b))];
        let alpha = settings.split(['=', ',']).nth(1).unwrap_or("1.0");
        let made = microsoft(text, feeds).within(4e-6).einsum_in_f64(
            equation,
            "a, b",
            &format!("alpha = [{alpha}]\ny = Mul(einsum, alpha)"),
        );
        cases.push(made.clone());
        cases.push(made.constant(&["b"]));
    }
    for activation in ["Relu", "Tanh", "Sigmoid"] {
        let text = format!("y = FusedGemm(a, b, c, transB=1, alpha=0.5, activation={activation})");
        let feeds = vec![("a", f32s(&[3, 7])), ("b", f32s(&[5, 7])), ("c", f32s(&[5]))];
        let plain = format!("t = Gemm(a, b, c, transB=1, alpha=0.5)\ny = {activation}(t)");
        cases.push(microsoft(text, feeds).within(4e-6).in_f64(plain));
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
            let layer = |inputs: &str, epsilon: &str| {
                format!("y = LayerNormalization({inputs}, epsilon={epsilon})")
            };
            let root = |epsilon: &str| format!("y = RMSNormalization(t, g, epsilon={epsilon})");
            let text = "y = SkipLayerNormalization(x, s, g, h, b, epsilon=0.00001)";
            let plain = format!("u = Add(x, s)\nt = Add(u, b)\n{}", layer("t, g, h", "0.00001"));
            cases.push(make(text, &["x", "s", "g", "h", "b"]).in_f64(plain));
            let text = "y = SkipLayerNormalization(x, s, g, h)";
            let plain = format!("t = Add(x, s)\n{}", layer("t, g, h", "0.000000000001"));
            cases.push(make(text, &["x", "s", "g", "h"]).in_f64(plain.clone()));
            let text = "y, , , z = SkipLayerNormalization(x, s, g, h)";
            let plain = format!("{plain}\nz = Identity(t)");
            cases.push(make(text, &["x", "s", "g", "h"]).in_f64(plain));
            let text = "y = SkipLayerNormalization(x, s, g)";
            let plain = format!("t = Add(x, s)\n{}", layer("t, g", "0.000000000001"));
            cases.push(make(text, &["x", "s", "g"]).in_f64(plain));
            let text = "y, , , z = SkipSimplifiedLayerNormalization(x, s, g, b)";
            let sum = "u = Add(x, s)\nt = Add(u, b)";
            let plain = format!("{sum}\n{}\nz = Identity(t)", root("0.000000000001"));
            cases.push(make(text, &["x", "s", "g", "b"]).in_f64(plain));
            let text = "y = SkipSimplifiedLayerNormalization(x, s, g, epsilon=0.001)";
            let plain = format!("t = Add(x, s)\n{}", root("0.001"));
            cases.push(make(text, &["x", "s", "g"]).in_f64(plain));
        }
        let feeds = vec![("x", f32s(shape)), ("g", f32s(&[size]))];
        let text = "y = SimplifiedLayerNormalization(x, g, epsilon=0.001)";
        let plain = "y = RMSNormalization(x, g, epsilon=0.001)";
        cases.push(case(text, feeds).within(5e-6).in_f64(plain));
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
        let made = microsoft(text, feeds.collect()).within(5e-6);
        // The others take the positions from 0 on.
        let looked_up = "a = Gather(w, i)\nc = Gather(p, o)\nd = Gather(t, s)\n\
                         e = Add(a, c)\nf = Add(e, d)\n\
                         y = LayerNormalization(f, g, b, epsilon=0.000000000001)\n\
                         n = Identity(m)\nz = Identity(f)";
        cases.push(if names.contains('o') { made.in_f64(looked_up) } else { made });
    }
}
