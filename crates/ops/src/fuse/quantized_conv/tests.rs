use std::collections::HashMap;

use attar_graph::testing::graph_from_text;

use super::*;
use crate::fuse::fuse_for_runtime;

fn levels(count: usize, seed: usize) -> impl Iterator<Item = i32> {
    (0..count).map(move |i| ((i * 7919 + seed) * 104_729 % 65_521 % 256) as i32)
}

/// The graph with weights, biases, scales and zero points of its convolutions: `w`, of the given
/// shape, and `v`, depthwise over as many channels as `w` has outputs.
fn model(text: &str, weight: [usize; 4]) -> Model {
    let mut graph = graph_from_text(text);
    let outputs = weight[0];
    let mut set = |name: &str, tensor: Tensor| graph.set_initializer(name, tensor);
    let w = |count: usize, seed| levels(count, seed).map(|w| (w - 128) as i8).collect::<Vec<_>>();
    set("w", Tensor::new(&weight, &w(weight.iter().product(), 3)));
    set("v", Tensor::new(&[outputs, 1, 3, 3], &w(outputs * 9, 8)));
    let scales: Vec<f32> = (0..outputs).map(|o| 0.001 + 0.0003 * (o % 7) as f32).collect();
    set("ws", Tensor::new(&[outputs], &scales));
    let bias: Vec<i32> = levels(outputs, 5).map(|b| b * 20 - 2000).collect();
    set("b", Tensor::new(&[outputs], &bias));
    let bias_scales: Vec<f32> = scales.iter().map(|scale| scale * 0.02).collect();
    set("bs", Tensor::new(&[outputs], &bias_scales));
    for (name, scale, zero) in [("x", 0.02_f32, 119_u8), ("y", 0.05, 90), ("z", 0.03, 0)] {
        set(&format!("{name}s"), Tensor::scalar(scale));
        set(&format!("{name}z"), Tensor::scalar(zero));
    }
    set("three", Tensor::scalar(3.0_f32));
    set("six", Tensor::scalar(6.0_f32));
    set("low", Tensor::scalar(0.0_f32));
    let names: Vec<String> = graph.initializers.keys().cloned().collect();
    graph.inputs.retain(|input| !names.contains(&input.name));
    let opsets = [(String::new(), 21), (MICROSOFT_DOMAIN.into(), 1)].into_iter().collect();
    Model { graph, opsets, ..Model::default() }
}

/// What the graph gives, node by node.
fn run(model: &Model, x: &Tensor) -> Tensor {
    let pool = Pool::default();
    let graph = &model.graph;
    let mut values: HashMap<&str, Tensor> =
        graph.constants().map(|(name, tensor)| (name, tensor.aligned())).collect();
    values.insert("x", x.clone());
    for node in &graph.nodes {
        let inputs: Vec<Option<Tensor>> =
            node.inputs.iter().map(|name| values.get(name.as_str()).cloned()).collect();
        let fixed: Vec<Option<&Tensor>> =
            node.inputs.iter().map(|name| graph.constant(name)).collect();
        let kernel = check(node, 21).unwrap().kernel(node, &fixed).unwrap();
        let outputs = kernel.run(&mut Run { inputs, pool: &pool }).unwrap();
        values.extend(node.outputs.iter().map(String::as_str).zip(outputs));
    }
    values[graph.outputs[0].name.as_str()].clone()
}

/// Quantizes `a`, computed as the lines say from `d`, the dequantized x.
fn around(lines: &str, scale: &str) -> String {
    format!(
        "x: f32[2, 5, 9, 8]\nq = QuantizeLinear(x, xs, xz)\nd = DequantizeLinear(q, xs, xz)\n\
         dw = DequantizeLinear(w, ws, axis=0)\ndb = DequantizeLinear(b, bs, axis=0)\n\
         dv = DequantizeLinear(v, ws, axis=0)\n{lines}\n\
         qy = QuantizeLinear(a, {scale}s, {scale}z)\ny = DequantizeLinear(qy, {scale}s, {scale}z)"
    )
}

/// Convolves, quantizes and dequantizes: `e` follows.
const FIRST: &str = "c = Conv(d, dw, db, pads=1,1,1,1)\nqc = QuantizeLinear(c, ys, yz)\n\
                     e = DequantizeLinear(qc, ys, yz)";

#[test]
fn what_is_fused_lies_within_a_step_of_the_unfused_graph() {
    let depthwise = "c = Conv(d, dw, db, pads=1,1,1,1)\nqc = QuantizeLinear(c, xs, xz)\n\
                     e = DequantizeLinear(qc, xs, xz)";
    let cases = [
        ("a = Conv(d, dw, db, pads=1,1,1,1)".to_string(), 1),
        ("a = Conv(d, dw, strides=2,2)".into(), 1),
        ("c = Conv(d, dw, db)\na = Relu(c)".into(), 1),
        ("c = Conv(d, dw, db)\na = Clip(c, low, three)".into(), 1),
        (format!("{depthwise}\na = Conv(e, dv, db, group=18, pads=1,1,1,1)"), 1),
        // Each quantization before may fall to the other side of a tie.
        (
            format!(
                "{FIRST}\nh = HardSwish(e)\nqh = QuantizeLinear(h, ys, yz)\n\
                  i = DequantizeLinear(qh, ys, yz)\na = Add(e, i)"
            ),
            2,
        ),
        (format!("{FIRST}\na = Sigmoid(e)"), 1),
        (
            format!(
                "{FIRST}\nt = Add(e, three)\nl = Clip(t, low, six)\nm = Mul(e, l)\n\
                  a = Div(m, six)"
            ),
            1,
        ),
        (
            format!(
                "{FIRST}\ng = Conv(d, dw, pads=1,1,1,1)\nqg = QuantizeLinear(g, xs, xz)\n\
                  i = DequantizeLinear(qg, xs, xz)\na = Add(e, i)"
            ),
            3,
        ),
        (
            format!(
                "{FIRST}\ng = GlobalAveragePool(e)\nqg = QuantizeLinear(g, ys, yz)\n\
                  i = DequantizeLinear(qg, ys, yz)\na = Mul(e, i)"
            ),
            2,
        ),
        (format!("{FIRST}\na = AveragePool(e, kernel_shape=2,2, strides=2,2)"), 1),
        (format!("{FIRST}\na = Concat(e, e, axis=1)"), 1),
        (format!("{FIRST}\na = MaxPool(e, kernel_shape=3,3, strides=2,2)"), 1),
        (format!("{FIRST}\na = Transpose(e, perm=0,2,3,1)"), 1),
    ];
    for (lines, steps) in cases {
        for scale in ["y", "z"] {
            let is_moved = ["MaxPool", "Transpose"].iter().any(|op| lines.contains(op));
            if is_moved && scale == "z" {
                continue;
            }
            let plain = model(&around(&lines, scale), [18, 5, 3, 3]);
            let mut fused = plain.clone();
            fuse_for_runtime(&mut fused).unwrap();
            let left = |op: &str| fused.graph.nodes.iter().any(|node| node.op_type.contains(op));
            let operators: Vec<&str> =
                fused.graph.nodes.iter().map(|node| node.op_type.as_str()).collect();
            let floats = ["FusedConv", "ChannelsLastConv", "QuantizeDequantize", "Sigmoid"];
            assert!(!floats.iter().any(|op| left(op)), "{lines}: {operators:?}");
            let values: Vec<f32> =
                levels(2 * 5 * 72, 1).map(|x| (x - 119) as f32 * 0.019).collect();
            let x = Tensor::new(&[2, 5, 9, 8], &values);
            let (expected, found) = (run(&plain, &x), run(&fused, &x));
            assert_eq!(found.shape(), expected.shape(), "{lines}");
            let step = if scale == "y" { 0.05 } else { 0.03 };
            let pairs = found.slice::<f32>().iter().zip(expected.slice::<f32>());
            let worst = pairs.map(|(a, b)| ((a - b).abs() / step).round() as i32).max();
            assert!(worst.unwrap() <= steps, "{lines}: {worst:?} {operators:?}");
        }
    }
}

#[test]
fn a_residual_addition_and_a_table_join_their_convolution() {
    let lines = format!(
        "{FIRST}\nf = HardSwish(e)\nqf = QuantizeLinear(f, ys, yz)\n\
         h = DequantizeLinear(qf, ys, yz)\ng = Conv(d, dw, pads=1,1,1,1)\n\
         qg = QuantizeLinear(g, xs, xz)\ni = DequantizeLinear(qg, xs, xz)\na = Add(h, i)"
    );
    let mut model = model(&around(&lines, "z"), [18, 5, 3, 3]);
    fuse_for_runtime(&mut model).unwrap();
    let found: Vec<&str> = model.graph.nodes.iter().map(|node| node.op_type.as_str()).collect();
    let count = |op: &str| found.iter().filter(|found| **found == op).count();
    assert_eq!(count("ChannelsLastQuantizedConv"), 2, "{found:?}");
    assert_eq!(count("LevelTable") + count("QLinearAdd"), 0, "{found:?}");
}

#[test]
fn what_others_read_in_float_stays() {
    let lines = "c = Conv(d, dw, db)\na = Relu(c)\ns = Softmax(a)";
    let mut model = model(&around(lines, "y"), [18, 5, 3, 3]);
    let softmax = attar_graph::Value::untyped("s");
    model.graph.outputs.push(softmax);
    assert!(plan(&model).edits.is_empty());
}
