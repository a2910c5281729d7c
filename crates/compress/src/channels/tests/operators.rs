//! Attention in its forms, and what ONNX Runtime's optimizer leaves in files.

use super::{case, check};

/// Queries, keys and values of x [2, 5, 6], by products with a bias.
fn projected(query: usize, key: usize, value: usize) -> String {
    let mut text = String::from("x: f32[2, 5, 6]\n");
    for (name, size) in [("q", query), ("k", key), ("v", value)] {
        text += &format!(
            "w{name} = normal[6, {size}]
             b{name} = normal[{size}]
             m{name} = MatMul(x, w{name})
             {name} = Add(m{name}, b{name})\n"
        );
    }
    text
}

/// Three heads on an axis of their own, those of keys with their axes as `keys` says; what
/// `attention` makes of them, y, is put together and read.
fn apart(keys: &str, attention: &str) -> String {
    let mut text = projected(12, 12, 12) + "apart = ints[0, 0, 3, 4]\n";
    for (name, perm) in [("q", "0,2,1,3"), ("k", keys), ("v", "0,2,1,3")] {
        text += &format!(
            "s{name} = Reshape({name}, apart)
             t{name} = Transpose(s{name}, perm={perm})\n"
        );
    }
    text + attention
        + "
           u = Transpose(y, perm=0,2,1,3)
           flat = ints[0, 0, 12]
           z = Reshape(u, flat)
           wo = normal[12, 2]
           out = MatMul(z, wo)"
}

/// Groups, sorted.
fn groups(what: &str, opset: i64, text: &str) -> Vec<String> {
    let mut found = check(what, &case(opset, text));
    found.sort();
    found
}

#[test]
fn heads_of_attention_are_cut_whole_or_at_one_place() {
    let all = ["head-dims 4", "head-dims 5", "heads 3"];
    for settings in ["", ", is_causal=1", ", scale=0.3, softcap=2.0"] {
        let text = projected(12, 12, 15)
            + &format!(
                "y = Attention(q, k, v, q_num_heads=3, kv_num_heads=3{settings})
                 wo = normal[15, 2]
                 out = MatMul(y, wo)"
            );
        assert_eq!(groups(settings, 23, &text), all);
    }
    let masked = projected(12, 12, 15)
        + "mask = normal[3, 5, 5]
           y = Attention(q, k, v, mask, q_num_heads=3, kv_num_heads=3)
           wo = normal[15, 2]
           out = MatMul(y, wo)";
    assert_eq!(groups("mask", 23, &masked), all);
}

#[test]
fn heads_of_keys_go_with_their_queries() {
    let text = projected(24, 8, 8)
        + "y = Attention(q, k, v, q_num_heads=6, kv_num_heads=2)
           wo = normal[24, 2]
           out = MatMul(y, wo)";
    // Heads of keys with three of queries each; one of three queries of every head of keys.
    assert_eq!(groups("grouped", 23, &text), ["head-dims 4", "head-dims 4", "heads 2", "heads 3"]);
    let single = projected(12, 4, 4)
        + "y = Attention(q, k, v, q_num_heads=3, kv_num_heads=1)
           wo = normal[12, 2]
           out = MatMul(y, wo)";
    let found = groups("single", 23, &single);
    assert!(found.contains(&"heads 3".to_string()), "{found:?}");
}

#[test]
fn heads_on_an_axis_of_their_own_are_cut_too() {
    let text = apart("0,2,1,3", "y = Attention(tq, tk, tv)");
    assert_eq!(groups("apart", 23, &text), ["head-dims 4", "head-dims 4", "heads 3"]);
}

#[test]
fn attention_written_out_is_cut_and_still_runs_as_one() {
    let attention = "scores = MatMul(tq, tk)
         p = Softmax(scores, axis=-1)
         y = MatMul(p, tv)";
    let text = apart("0,2,3,1", attention);
    assert_eq!(groups("written out", 17, &text), ["head-dims 4", "head-dims 4", "heads 3"]);
}

#[test]
fn places_that_no_weight_zeroes_are_not_exact() {
    let text = projected(12, 12, 12)
        + "p = Sigmoid(q)
           r = Sigmoid(k)
           y = Attention(p, r, v, q_num_heads=3, kv_num_heads=3)
           wo = normal[12, 2]
           out = MatMul(y, wo)";
    assert_eq!(groups("sigmoid", 23, &text), ["head-dims 4", "heads 3", "~width 4"]);
    let by_hand = projected(4, 4, 6)
        + "p = Sigmoid(q)
           r = Sigmoid(k)
           t = Transpose(r, perm=0,2,1)
           s = MatMul(p, t)
           y = MatMul(s, v)
           wo = normal[6, 2]
           out = MatMul(y, wo)";
    assert_eq!(groups("by hand", 17, &by_hand), ["columns 6", "~width 4"]);
}

#[test]
fn multi_head_attention_of_onnx_runtime() {
    let all = ["head-dims 4", "head-dims 5", "heads 3"];
    let end = "wo = normal[15, 2]\nout = MatMul(y, wo)";
    for (start, call) in [
        ("", "q, k, v, num_heads=3"),
        ("b = normal[39]", "q, k, v, b, num_heads=3"),
        ("b = normal[39]\ns = normal[1, 3, 5, 5]", "q, k, v, b, , s, num_heads=3, scale=0.4"),
        ("s = normal[1, 1, 5, 5]", "q, k, v, , , s, num_heads=3, unidirectional=1"),
    ] {
        let text =
            projected(12, 12, 15) + &format!("{start}\ny = ms.MultiHeadAttention({call})\n{end}");
        assert_eq!(groups(call, 17, &text), all);
    }
    let together = "
        x: f32[2, 5, 6]
        w = normal[6, 36]
        m = MatMul(x, w)
        b = normal[36]
        shape = ints[0, 0, 3, 3, 4]
        q = Reshape(m, shape)
        y = ms.MultiHeadAttention(q, , , b, num_heads=3)
        wo = normal[12, 2]
        out = MatMul(y, wo)";
    let found = groups("together", 17, together);
    assert!(found.contains(&"heads 3".to_string()), "{found:?}");
}

#[test]
fn packed_attention_of_onnx_runtime() {
    let end = "wo = normal[SIZE, 2]\nout = MatMul(y, wo)";
    for (size, start, call, all) in [
        (12, "w = normal[7, 36]\nb = normal[36]", "h, w, b, num_heads=3", &["head-dims 4"][..]),
        (
            15,
            "w = normal[7, 39]\nb = normal[39]",
            "h, w, b, num_heads=3, qkv_hidden_sizes=12,12,15",
            &["head-dims 4", "head-dims 5"],
        ),
        (
            12,
            "w = normal[7, 36]\nb = normal[36]\ns = normal[2, 3, 5, 5]",
            "h, w, b, , , s, num_heads=3, scale=0.3, unidirectional=1",
            &["head-dims 4"],
        ),
    ] {
        let text = format!(
            "x: f32[2, 5, 6]
             w0 = normal[6, 7]
             h = MatMul(x, w0)
             {start}
             y = ms.Attention({call})
             {}",
            end.replace("SIZE", &size.to_string())
        );
        let mut expected = vec!["columns 7".to_string()];
        expected.extend(all.iter().map(ToString::to_string));
        expected.push("heads 3".into());
        assert_eq!(groups(call, 17, &text), expected);
    }
}

#[test]
fn rotated_pairs_go_together() {
    for (opset, rotary) in [
        (23, "RotaryEmbedding(NAME, cos, sin, ids, num_heads=3)"),
        (23, "RotaryEmbedding(NAME, cos, sin, ids, num_heads=3, interleaved=1)"),
        (17, "ms.RotaryEmbedding(NAME, ids, cos, sin)"),
    ] {
        let mut text = projected(12, 12, 12)
            + "ids: i64[2, 5]
               cos = normal[5, 2]
               sin = normal[5, 2]\n";
        for name in ["q", "k"] {
            text += &format!("r{name} = {}\n", rotary.replace("NAME", name));
        }
        text += "y = ms.MultiHeadAttention(rq, rk, v, num_heads=3)
                 wo = normal[12, 2]
                 out = MatMul(y, wo)";
        let all = ["head-dims 2", "head-dims 4", "heads 3"];
        assert_eq!(groups(rotary, opset, &text), all);
    }
}

#[test]
fn heads_of_linear_attention_are_cut() {
    let text = projected(12, 6, 8)
        + "y, = LinearAttention(q, k, v, q_num_heads=4, kv_num_heads=2, update_rule=linear)
           wo = normal[16, 2]
           out = MatMul(y, wo)";
    let found = groups("linear", 27, &text);
    for expected in ["head-dims 3", "head-dims 4", "heads 2"] {
        assert!(found.iter().any(|group| group == expected), "{found:?}");
    }
}

#[test]
fn channels_pass_a_causal_convolution() {
    let text = "
        x: f32[2, 3, 7]
        w = normal[4, 3, 1]
        c = Conv(x, w)
        k = normal[4, 1, 3]
        b = normal[4]
        y, = CausalConvWithState(c, k, b, activation=silu)
        v = normal[2, 4, 1]
        out = Conv(y, v)";
    assert_eq!(groups("causal", 27, text), ["conv 4"]);
}

#[test]
fn fused_products_and_convolutions() {
    let text = "
        x: f32[2, 5, 6]
        w = normal[8, 6]
        a = ms.FusedMatMul(x, w, transB=1, alpha=0.5)
        b = normal[8]
        g = ms.BiasGelu(a, b)
        v = normal[8, 4]
        c = ms.FusedMatMul(g, v, alpha=2.0)
        d = normal[4]
        f = ms.FastGelu(c, d)
        flat = ints[10, -1]
        r = Reshape(f, flat)
        u = normal[3, 4]
        e = ms.FusedGemm(r, u, transB=1, activation=Relu)
        t = normal[3, 2]
        out = MatMul(e, t)";
    assert_eq!(groups("products", 17, text), ["columns 3", "columns 4", "columns 8"]);
    let text = "
        x: f32[2, 3, 6, 6]
        w = normal[4, 3, 3, 3]
        b = normal[4]
        c = ms.FusedConv(x, w, b, activation=Relu, pads=1,1,1,1)
        v = normal[4, 4, 1, 1]
        d = ms.FusedConv(c, v, b, c, activation=LeakyRelu, activation_params=0.1)
        u = normal[2, 4, 1, 1]
        out = Conv(d, u)";
    assert_eq!(groups("convolutions", 17, text), ["conv 4"]);
    // Rows of a, turned: what is summed over is the first axis of both.
    let text = "
        x: f32[2, 5, 6]
        w = normal[6, 4]
        a = MatMul(x, w)
        v = normal[6, 4]
        c = MatMul(x, v)
        s = ms.FusedMatMul(a, c, transB=1)
        y = ms.FusedMatMul(s, a)
        u = normal[4, 2]
        out = MatMul(y, u)";
    assert_eq!(groups("scores", 17, text), ["columns 4"]);
}

#[test]
fn statistics_make_the_width_inexact() {
    let text = "
        x: f32[2, 5, 6]
        w = normal[6, 8]
        a = MatMul(x, w)
        v = normal[6, 8]
        c = MatMul(x, v)
        g = normal[8]
        h = normal[8]
        b = normal[8]
        y, , , s = ms.SkipLayerNormalization(a, c, g, h, b)
        z = ms.SkipSimplifiedLayerNormalization(s, y, g, b)
        r = SimplifiedLayerNormalization(z, g)
        u = normal[8, 2]
        out = MatMul(r, u)";
    assert_eq!(groups("normalizations", 17, text), ["~width 8"]);
    let text = "
        ids: i32[2, 3]
        kinds: i32[2, 3]
        words = normal[9, 8]
        places = normal[6, 8]
        types = normal[4, 8]
        g = normal[8]
        b = normal[8]
        y, = ms.EmbedLayerNormalization(ids, kinds, words, places, types, g, b)
        w = normal[8, 4]
        m = MatMul(y, w)
        v = normal[4, 2]
        out = MatMul(m, v)";
    assert_eq!(groups("embedding", 17, text), ["columns 4", "~width 8"]);
}

#[test]
fn heads_pass_a_softmax_with_a_bias() {
    let mut text = projected(12, 12, 12) + "apart = ints[0, 0, 3, 4]\n";
    for name in ["q", "k", "v"] {
        text += &format!(
            "s{name} = Reshape({name}, apart)
             t{name} = Transpose(s{name}, perm=0,2,1,3)\n"
        );
    }
    text += "s = ms.FusedMatMul(tq, tk, transB=1, alpha=0.5)
             bias = normal[2, 1, 1, 5]
             p = ms.BiasSoftmax(s, bias, axis=3, is_inner_broadcast=1)
             y = MatMul(p, tv)
             u = Transpose(y, perm=0,2,1,3)
             flat = ints[0, 0, 12]
             z = Reshape(u, flat)
             wo = normal[12, 2]
             out = MatMul(z, wo)";
    assert_eq!(groups("bias softmax", 17, &text), ["head-dims 4", "head-dims 4", "heads 3"]);
}
