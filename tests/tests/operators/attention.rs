//! Attention in ONNX's and ONNX Runtime's forms, and what stands around it.

use attar_tensor::Tensor;

use crate::case::*;

/// Sums of a few dozen terms, through a softmax.
const TOLERANCE: f64 = 5e-6;

fn i32s(shape: &[usize], values: &[i32]) -> Tensor {
    Tensor::new(shape, values)
}

fn standard(settings: &str, feeds: Vec<(&'static str, Tensor)>) -> Case {
    let names: Vec<&str> = feeds.iter().map(|(name, _)| *name).collect();
    let slots = ["q", "k", "v", "mask", "pk", "pv", "n"];
    let last = slots.iter().rposition(|slot| names.contains(slot)).unwrap_or(2);
    let inputs: Vec<&str> =
        slots[..=last].iter().map(|slot| if names.contains(slot) { slot } else { "" }).collect();
    let outputs = if names.contains(&"pk") { "y, k2, v2" } else { "y" };
    case(format!("{outputs} = Attention({}{settings})", inputs.join(", ")), feeds)
        .opset(23)
        .within(TOLERANCE)
}

fn standard_cases(cases: &mut Vec<Case>) {
    let apart = |heads: usize, kv_heads: usize, queries: usize, keys: usize| {
        vec![
            ("q", f32s(&[2, heads, queries, 8])),
            ("k", f32s(&[2, kv_heads, keys, 8])),
            ("v", f32s(&[2, kv_heads, keys, 10])),
        ]
    };
    for (heads, kv_heads, queries, keys) in [(3, 3, 4, 4), (4, 2, 5, 7), (6, 1, 1, 9), (2, 2, 3, 1)]
    {
        let feeds = || apart(heads, kv_heads, queries, keys);
        cases.push(standard("", feeds()));
        cases.push(standard(", scale=0.3, softcap=2.0", feeds()));
        cases.push(standard(", is_causal=1", feeds()));
        for shape in [&[queries, keys][..], &[2, 1, queries, keys], &[2, heads, queries, keys]] {
            let mut feeds = feeds();
            feeds.push(("mask", f32s(shape)));
            cases.push(standard("", feeds));
        }
        let mut feeds = feeds();
        feeds.push(("mask", bools(&[queries, keys])));
        cases.push(standard("", feeds.clone()));
        feeds.pop();
        let past = [("pk", f32s(&[2, kv_heads, 3, 8])), ("pv", f32s(&[2, kv_heads, 3, 10]))];
        feeds.extend(past);
        cases.push(standard("", feeds));
    }
    let packed = vec![("q", f32s(&[2, 5, 24])), ("k", f32s(&[2, 7, 12])), ("v", f32s(&[2, 7, 10]))];
    cases.push(standard(", q_num_heads=4, kv_num_heads=2", packed.clone()));
    cases.push(standard(", q_num_heads=4, kv_num_heads=2, is_causal=1", packed));
    for mode in [0, 1, 2] {
        let text = format!(
            "y, , , s = Attention(q, k, v, mask, softcap=1.5, qk_matmul_output_mode={mode})"
        );
        let mut feeds = apart(3, 3, 4, 6);
        feeds.push(("mask", f32s(&[4, 6])));
        cases.push(case(text, feeds).opset(23).within(TOLERANCE));
    }
}

fn rotary_cases(cases: &mut Vec<Case>) {
    for settings in ["", ", interleaved=1"] {
        let text = format!("y = RotaryEmbedding(x, c, s, p{settings})");
        let positions = Tensor::new(&[2, 3], &[0_i64, 1, 2, 5, 3, 4]);
        let feeds = |shape: &[usize]| {
            let tables = [("c", f32s(&[8, 4])), ("s", positive(&[8, 4]))];
            let [c, s] = tables;
            vec![("x", f32s(shape)), c, s, ("p", positions.clone())]
        };
        cases.push(case(text, feeds(&[2, 4, 3, 8])).opset(23));
        let text = format!("y = RotaryEmbedding(x, c, s, p, num_heads=4{settings})");
        cases.push(case(text, feeds(&[2, 3, 32])).opset(23));
        let text = format!("y = RotaryEmbedding(x, c, s, num_heads=2{settings})");
        let feeds =
            vec![("x", f32s(&[2, 3, 16])), ("c", f32s(&[2, 3, 4])), ("s", positive(&[2, 3, 4]))];
        cases.push(case(text, feeds).opset(23));
        let text = format!(
            "y = RotaryEmbedding(x, c, s, p, num_heads=2, rotary_embedding_dim=8{settings})"
        );
        let feeds = vec![
            ("x", f32s(&[2, 3, 24])),
            ("c", f32s(&[8, 4])),
            ("s", positive(&[8, 4])),
            ("p", positions.clone()),
        ];
        cases.push(case(text, feeds).opset(23));
        for p in [positions.clone(), Tensor::new(&[1], &[2_i64])] {
            for shape in [&[2, 3, 32][..], &[2, 4, 3, 8]] {
                let text = format!("y = RotaryEmbedding(x, p, c, s{settings})");
                let feeds = vec![
                    ("x", f32s(shape)),
                    ("p", p.clone()),
                    ("c", f32s(&[8, 4])),
                    ("s", positive(&[8, 4])),
                ];
                let made = case(text, feeds).domain("com.microsoft", 1);
                let heads = if shape.len() == 3 { ", num_heads=4" } else { "" };
                let plain = format!("y = RotaryEmbedding(x, c, s, p{heads}{settings})");
                // ONNX has no form for one offset.
                cases.push(if p.rank() == 2 { made.in_f64(plain) } else { made });
            }
        }
    }
}

/// Masks of two texts of four tokens after `past` tokens.
fn masks(past: usize) -> Vec<Option<Tensor>> {
    let keys = past + 4;
    let flags = |shape: &[usize]| {
        let count: usize = shape.iter().product();
        i32s(shape, &(0..count).map(|i| i32::from(i % 5 != 3)).collect::<Vec<_>>())
    };
    vec![
        None,
        Some(i32s(&[2], &[3, keys as i32])),
        Some(i32s(&[4], &[3, keys as i32, 0, 1])),
        Some(flags(&[2, keys])),
        Some(flags(&[2, 4, keys])),
    ]
}

fn packed_cases(cases: &mut Vec<Case>) {
    for (mask, settings) in masks(0).into_iter().flat_map(|mask| {
        [", num_heads=3", ", num_heads=3, unidirectional=1", ", num_heads=2, scale=0.4"]
            .map(|settings| (mask.clone(), settings))
    }) {
        let mut feeds = vec![("x", f32s(&[2, 4, 10])), ("w", f32s(&[10, 72])), ("b", f32s(&[72]))];
        let name = if mask.is_some() { "m" } else { "" };
        feeds.extend(mask.map(|mask| ("m", mask)));
        let text = format!("y = Attention(x, w, b, {name}{settings})");
        let packed = case(text, feeds).domain("com.microsoft", 1).within(TOLERANCE);
        cases.push(packed.clone());
        cases.push(packed.constant(&["w", "b"]));
    }
    for mask in masks(3) {
        let mut feeds = vec![
            ("x", f32s(&[2, 4, 10])),
            ("w", f32s(&[10, 72])),
            ("b", f32s(&[72])),
            ("p", f32s(&[2, 2, 3, 3, 8])),
        ];
        let name = if mask.is_some() { "m" } else { "" };
        feeds.extend(mask.map(|mask| ("m", mask)));
        let text = format!("y, z = Attention(x, w, b, {name}, p, num_heads=3, unidirectional=1)");
        cases.push(case(text, feeds).domain("com.microsoft", 1).within(TOLERANCE));
    }
    for shape in [&[2, 3, 4, 4][..], &[1, 3, 4, 4], &[2, 1, 4, 4], &[1, 1, 4, 4]] {
        let feeds = vec![
            ("x", f32s(&[2, 4, 10])),
            ("w", f32s(&[10, 60])),
            ("b", f32s(&[60])),
            ("m", i32s(&[2], &[3, 4])),
            ("r", f32s(shape)),
        ];
        let sizes = "num_heads=3, qkv_hidden_sizes=24,24,12";
        let text = format!("y = Attention(x, w, b, m, , r, {sizes})");
        let plain = "m0 = MatMul(x, w)\nm1 = Add(m0, b)\nends = [24 24 12]\n\
                     split = Cast(ends, to=7)\nq, k, v = Split(m1, split, axis=2)\n\
                     keys = [0 0 0 -10000; 0 0 0 0]\none = [1]\naxes = Cast(one, to=7)\n\
                     k1 = Unsqueeze(keys, axes)\nk2 = Unsqueeze(k1, axes)\nsum = Add(k2, r)\n\
                     y = Attention(q, k, v, sum, q_num_heads=3, kv_num_heads=3)";
        let made = case(text, feeds).domain("com.microsoft", 1).within(TOLERANCE);
        cases.push(made.in_f64(plain));
    }
}

fn multi_head_cases(cases: &mut Vec<Case>) {
    let multi_head = |text: &str, feeds: Vec<(&'static str, Tensor)>| {
        case(text, feeds).domain("com.microsoft", 1).within(TOLERANCE)
    };
    let feeds =
        || vec![("q", f32s(&[2, 4, 24])), ("k", f32s(&[2, 4, 24])), ("v", f32s(&[2, 4, 30]))];
    let heads = "q_num_heads=3, kv_num_heads=3";
    let plain = format!("y = Attention(q, k, v, {heads})");
    let text = "y = MultiHeadAttention(q, k, v, num_heads=3)";
    cases.push(multi_head(text, feeds()).in_f64(plain.clone()));
    let text = "y = MultiHeadAttention(q, k, v, num_heads=3, unidirectional=1, scale=0.2)";
    let causal = format!("y = Attention(q, k, v, {heads}, is_causal=1, scale=0.2)");
    cases.push(multi_head(text, feeds()).in_f64(causal));
    let with = |name: &'static str, tensor: Tensor| {
        let mut feeds = feeds();
        feeds.push((name, tensor));
        feeds
    };
    let text = "y = MultiHeadAttention(q, k, v, b, num_heads=3)";
    let split = "ends = [24 24 30]\nsplit = Cast(ends, to=7)\n\
                 bq, bk, bv = Split(b, split)\n\
                 q2 = Add(q, bq)\nk2 = Add(k, bk)\nv2 = Add(v, bv)";
    let biased = format!("{split}\ny = Attention(q2, k2, v2, {heads})");
    cases.push(multi_head(text, with("b", f32s(&[78]))).in_f64(biased));
    for mask in masks(0).into_iter().flatten().filter(|mask| mask.shape() != [4]) {
        let text = "y = MultiHeadAttention(q, k, v, , m, num_heads=3)";
        cases.push(multi_head(text, with("m", mask)));
    }
    for shape in [&[2, 3, 4, 4][..], &[1, 3, 4, 4], &[2, 1, 4, 4]] {
        let text = "y = MultiHeadAttention(q, k, v, , , r, num_heads=3)";
        let added = format!("y = Attention(q, k, v, r, {heads})");
        cases.push(multi_head(text, with("r", f32s(shape))).in_f64(added));
    }
    let text = "y = MultiHeadAttention(q, k, v, b, m, r, num_heads=3)";
    let mut all = with("b", f32s(&[78]));
    all.push(("m", i32s(&[2, 4], &[1, 1, 1, 0, 1, 1, 0, 0])));
    all.push(("r", f32s(&[1, 3, 4, 4])));
    let masked = "flags = Cast(m, to=11)\none = [1]\nscale = [10000]\nless = Sub(flags, one)\n\
                  rows = Mul(less, scale)\naxis = [1]\naxes = Cast(axis, to=7)\n\
                  first = Unsqueeze(rows, axes)\nsecond = Unsqueeze(first, axes)\n\
                  sum = Add(second, r)";
    let plain_all = format!("{split}\n{masked}\ny = Attention(q2, k2, v2, sum, {heads})");
    cases.push(multi_head(text, all).in_f64(plain_all));
    let text = "y, k2, v2 = MultiHeadAttention(q, k, v, , , , pk, pv, num_heads=3)";
    let feeds = vec![
        ("q", f32s(&[2, 4, 24])),
        ("k", f32s(&[2, 4, 24])),
        ("v", f32s(&[2, 4, 24])),
        ("pk", f32s(&[2, 3, 5, 8])),
        ("pv", f32s(&[2, 3, 5, 8])),
    ];
    cases.push(multi_head(text, feeds));
    let text = "y = MultiHeadAttention(q, k, v, num_heads=3)";
    let feeds =
        vec![("q", f32s(&[2, 4, 24])), ("k", f32s(&[2, 3, 6, 8])), ("v", f32s(&[2, 3, 6, 8]))];
    cases.push(multi_head(text, feeds));
    let feeds = vec![("q", f32s(&[2, 4, 24])), ("k", f32s(&[2, 6, 24])), ("v", f32s(&[2, 6, 30]))];
    cases.push(multi_head(text, feeds).in_f64(plain));
}

fn quantized_cases(cases: &mut Vec<Case>) {
    for (x, w) in [
        (bytes_u8(&[2, 4, 10]), weights_i8(&[10, 72])),
        (bytes_u8(&[2, 4, 10]), bytes_u8(&[10, 72])),
    ] {
        let x_zero = Tensor::scalar(120_u8);
        let zero = |value: u8| match w.dtype() {
            attar_tensor::DType::U8 => Tensor::scalar(value),
            _ => Tensor::scalar(value as i8),
        };
        let scale = Tensor::scalar(0.01_f32);
        for mask in masks(0) {
            let name = if mask.is_some() { "m" } else { "" };
            let mut feeds = vec![
                ("x", x.clone()),
                ("w", w.clone()),
                ("b", f32s(&[72])),
                ("xs", scale.clone()),
                ("ws", Tensor::scalar(0.003_f32)),
                ("xz", x_zero.clone()),
                ("wz", zero(5)),
            ];
            feeds.extend(mask.map(|mask| ("m", mask)));
            for settings in ["", ", unidirectional=1"] {
                let text = format!(
                    "y = QAttention(x, w, b, xs, ws, {name}, xz, wz, num_heads=3{settings})"
                );
                let made = case(text, feeds.clone()).domain("com.microsoft", 1).within(TOLERANCE);
                cases.push(made.clone());
                cases.push(made.constant(&["w", "b", "ws", "wz"]));
            }
        }
    }
}

fn state_cases(cases: &mut Vec<Case>) {
    let decay = |shape: &[usize]| {
        let values: Vec<f32> = f32s(shape).slice::<f32>().iter().map(|x| -x.abs()).collect();
        Tensor::new(shape, &values)
    };
    for (rule, inputs, decays) in [
        ("linear", "q, k, v, p", 8),
        ("linear", "q, k, v", 8),
        ("gated", "q, k, v, p, g", 8),
        ("gated", "q, k, v, p, g", 2),
        ("delta", "q, k, v, p, , b", 8),
        ("gated_delta", "q, k, v, , g, b", 2),
        ("gated_delta", "q, k, v, p, g, b", 8),
    ] {
        for heads in [2, 4] {
            let all = [
                ("q", f32s(&[2, 3, heads * 4])),
                ("k", f32s(&[2, 3, 8])),
                ("v", f32s(&[2, 3, 12])),
                ("p", f32s(&[2, 2, 4, 6])),
                ("g", decay(&[2, 3, decays])),
                ("b", positive(&[2, 3, 2])),
            ];
            let feeds = all.into_iter().filter(|(name, _)| inputs.contains(name)).collect();
            let settings = format!("q_num_heads={heads}, kv_num_heads=2, update_rule={rule}");
            let text = format!("y, s = LinearAttention({inputs}, {settings})");
            cases.push(case(text, feeds).opset(27).within(TOLERANCE));
        }
    }
    for (inputs, settings) in [
        ("x, w", ""),
        ("x, w, b", ", activation=silu"),
        ("x, w, , p", ", activation=swish"),
        ("x, w, b, p", ""),
    ] {
        for length in [1, 2, 9] {
            let all = [
                ("x", f32s(&[2, 3, length])),
                ("w", f32s(&[3, 1, 4])),
                ("b", f32s(&[3])),
                ("p", f32s(&[2, 3, 3])),
            ];
            let feeds = all.into_iter().filter(|(name, _)| inputs.contains(name)).collect();
            let text = format!("y, s = CausalConvWithState({inputs}{settings})");
            cases.push(case(text, feeds).opset(27).within(TOLERANCE));
        }
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    state_cases(&mut cases);
    standard_cases(&mut cases);
    rotary_cases(&mut cases);
    packed_cases(&mut cases);
    multi_head_cases(&mut cases);
    quantized_cases(&mut cases);
    cases
}
