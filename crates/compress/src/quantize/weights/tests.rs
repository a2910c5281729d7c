use attar_graph::testing::graph_from_text;
use attar_graph::{Model, Value, apply};
use attar_ops::opset::convert_opset;
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::Tensor;

use crate::{Calibration, Context, PassError, pass_entry};

/// Rows of channels that move together, the last of them large.
struct Rows;

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

const INPUTS: usize = 40;
const OUTPUTS: usize = 6;
const ROWS: usize = 200;

fn rows() -> Tensor {
    let (own, shared) = (numbers(ROWS * INPUTS, 1), numbers(ROWS, 2));
    let x = |i: usize| {
        let scale = if i % INPUTS == INPUTS - 1 { 8.0 } else { 1.0 };
        scale * (own[i] + 2.0 * shared[i / INPUTS])
    };
    Tensor::new(&[ROWS, INPUTS], &(0..ROWS * INPUTS).map(x).collect::<Vec<f32>>())
}

impl Calibration for Rows {
    fn for_each_batch(
        &self,
        _: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        visit(&[("x", &rows())])
    }
}

/// A product, or what else `line` says, of `x` and the weight `w`.
fn model(line: &str, shape: &[usize]) -> Model {
    let mut graph = graph_from_text(&format!("x: f32[{ROWS}, {INPUTS}]\n{line}"));
    let count = shape.iter().product();
    graph.set_initializer("w", Tensor::new(shape, &numbers(count, 3)));
    graph.inputs.retain(|input| input.name == "x");
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { graph, opsets, ..Model::default() }
}

fn product() -> Model {
    model("y = MatMul(x, w)", &[INPUTS, OUTPUTS])
}

fn quantized(model: &Model, settings: &str) -> Model {
    let settings = settings.replace(',', "\n").parse().unwrap();
    let pass = pass_entry("quantize.weights").unwrap().build(settings).unwrap();
    let mut model = model.clone();
    if model.opset() < pass.opset_min() {
        convert_opset(&mut model, pass.opset_min()).unwrap();
    }
    let context = Context { calibration: Some(&Rows), ..Context::new(&Builtin) };
    let plan = pass.plan(&model, &context).unwrap();
    apply(&mut model.graph, &plan).unwrap();
    model.import_domains();
    model
}

fn run(model: &Model) -> Vec<f32> {
    let mut session = Builtin.load(model, &RunOptions::default()).unwrap();
    session.run(&[("x", &rows())]).unwrap()[0].values::<f32>().into_owned()
}

/// ‖ŷ − y‖ / ‖y‖.
fn error(model: &Model, settings: &str) -> f64 {
    apart(&run(model), &run(&quantized(model, settings)))
}

fn apart(expected: &[f32], found: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let lost: f64 = expected.iter().zip(found).map(|(a, b)| square(a - b)).sum();
    (lost / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

#[test]
fn both_forms_hold_the_same_levels() {
    for settings in ["bits=4", "bits=8", "bits=4,block=16", "bits=4,block=16,zero_points=false"] {
        let one = run(&quantized(&product(), settings));
        let other = run(&quantized(&product(), &format!("{settings},form=\"nbits\"")));
        // The kernels sum in one order; the file's levels are the same.
        assert_eq!(one, other, "{settings}");
    }
}

#[test]
fn floats_of_eight_bits_have_their_precision() {
    let gemm = model("y = Gemm(x, w, transB=1)", &[OUTPUTS, INPUTS]);
    for (format, bound) in [("e4m3", 0.05), ("e5m2", 0.1)] {
        for original in [&product(), &gemm] {
            let settings = format!("format = \"{format}\"").parse().unwrap();
            let pass = pass_entry("quantize.float8").unwrap().build(settings).unwrap();
            let mut made = original.clone();
            convert_opset(&mut made, pass.opset_min()).unwrap();
            let plan = pass.plan(&made, &Context::new(&Builtin)).unwrap();
            apply(&mut made.graph, &plan).unwrap();
            let error = apart(&run(original), &run(&made));
            assert!(error > 1e-4 && error < bound, "{format}: {error}");
        }
    }
}

#[test]
fn later_weights_make_up_for_what_rounding_earlier_ones_did() {
    let mut two = model(
        "h = MatMul(x, w)\nt = Tanh(h)\nm = MatMul(t, v)\nb = Add(m, c)\ny = Add(h, b)",
        &[INPUTS, 24],
    );
    two.graph.set_initializer("v", Tensor::new(&[24, 24], &numbers(24 * 24, 5)));
    two.graph.set_initializer("c", Tensor::new(&[24], &numbers(24, 6)));
    for bits in [2, 4] {
        let settings = format!("bits={bits},block=16,rounding=\"gptq\"");
        let alone = error(&two, &format!("{settings},sequential=false"));
        let sequential = error(&two, &settings);
        assert!(sequential < 0.9 * alone, "{bits} bits: {sequential} of {alone}");
    }
}

#[test]
fn more_bits_and_smaller_blocks_lose_less() {
    let model = product();
    let errors = ["bits=2,block=16", "bits=4,block=0", "bits=4,block=16", "bits=8,block=16"]
        .map(|settings| error(&model, &format!("{settings},rounding=\"nearest\"")));
    assert!(errors.windows(2).all(|pair| pair[1] < pair[0]), "{errors:?}");
    assert!(errors[3] < 0.01, "{errors:?}");
}

#[test]
fn second_moments_and_scaled_channels_gain() {
    let model = product();
    let of = |settings: &str| error(&model, settings);
    let nearest = of("block=16,rounding=\"nearest\"");
    assert!(of("block=16,rounding=\"gptq\"") < 0.6 * nearest);
    assert!(of("block=16,rounding=\"nearest\",awq=true") < 0.9 * nearest);
}

#[test]
fn a_transposed_weight_and_one_with_two_readers_keep_their_layout() {
    let gemm = model("y = Gemm(x, w, transB=1)", &[OUTPUTS, INPUTS]);
    assert!(error(&gemm, "block=16") < 0.1);
    let shared = model("a = MatMul(x, w)\nb = MatMul(a, w)\ny = Add(a, b)", &[INPUTS, INPUTS]);
    let made = quantized(&shared, "block=16");
    let count = made.graph.nodes.iter().filter(|node| node.is("DequantizeLinear")).count();
    assert_eq!(count, 1, "one weight, read twice");
    assert!(error(&shared, "block=16") < 0.2);
    // Both layouts of one weight.
    let twice = model("a = Gemm(x, w)\nb = Gemm(a, w, transB=1)\ny = Add(a, b)", &[INPUTS, INPUTS]);
    assert!(error(&twice, "block=16,bits=8") < 0.02);
}

#[test]
fn convolutions_and_recurrent_layers_are_quantized_by_output() {
    let conv = model("r = Reshape(x, s)\ny = Conv(r, w)", &[OUTPUTS, INPUTS, 1, 1]);
    assert!(error(&reshaped(conv, &[200, 40, 1, 1]), "bits=8") < 0.02);
    let lstm = "q = Reshape(x, s)\ny = LSTM(q, w, r, hidden_size=3)";
    let mut lstm = model(lstm, &[1, 12, INPUTS]);
    lstm.graph.set_initializer("r", Tensor::new(&[1, 12, 3], &numbers(36, 4)));
    let lstm = reshaped(lstm, &[200, 1, 40]);
    assert!(error(&lstm, "bits=8") < 0.05);
    let made = quantized(&lstm, "bits=8");
    let count = made.graph.nodes.iter().filter(|node| node.is("DequantizeLinear")).count();
    assert_eq!(count, 2, "what meets the input, and what meets the state");
}

#[test]
fn convolutions_are_rounded_by_what_their_kernels_cover() {
    let images = |line: &str, shape: &[usize]| {
        let text = format!("r = Reshape(x, s)\n{line}");
        reshaped(model(&text, shape), &[8, 10, 10, 10])
    };
    for (line, shape) in [
        ("y = Conv(r, w, pads=1,1,1,1)", [6, 10, 3, 3]),
        ("y = Conv(r, w, strides=2,1, dilations=1,2)", [6, 10, 3, 3]),
        // Depthwise, and two groups.
        ("y = Conv(r, w, group=10, strides=2,2)", [20, 1, 3, 3]),
        ("y = Conv(r, w, group=2)", [4, 5, 3, 3]),
    ] {
        let model = images(line, &shape);
        let [moments, mse] = ["bits=4", "bits=4,rounding=\"mse\""].map(|s| error(&model, s));
        assert!(moments < 0.9 * mse, "{line}: {moments} of {mse}");
    }
    // What is added to the input makes up for what the first convolution lost.
    let mut two = images(
        "a = Conv(r, w, pads=1,1,1,1)\nb = Tanh(a)\nc = Conv(b, v, pads=1,1,1,1)\ny = Add(a, c)",
        &[10, 10, 3, 3],
    );
    two.graph.set_initializer("v", Tensor::new(&[10, 10, 3, 3], &numbers(900, 7)));
    two.graph.inputs.retain(|input| input.name == "x");
    let [moments, mse] = ["bits=4", "bits=4,rounding=\"mse\""].map(|s| error(&two, s));
    assert!(moments < 0.8 * mse, "{moments} of {mse}");
}

/// With the shape that `x` is given.
fn reshaped(mut model: Model, shape: &[i64]) -> Model {
    model.graph.set_initializer("s", Tensor::new(&[shape.len()], shape));
    model.graph.inputs.retain(|input| input.name == "x");
    model
}

#[test]
fn without_data_weights_are_rounded_and_gptq_says_what_it_lacks() {
    let mut model = product();
    convert_opset(&mut model, 21).unwrap();
    let pass = |settings: &str| {
        pass_entry("quantize.weights").unwrap().build(settings.parse().unwrap()).unwrap()
    };
    let plan = pass("").plan(&model, &Context::new(&Builtin)).unwrap();
    assert!(plan.remarks[0].contains("least squared error, without data"), "{:?}", plan.remarks);
    let error = pass("rounding = \"gptq\"").plan(&model, &Context::new(&Builtin)).unwrap_err();
    assert!(matches!(error, PassError::NoCalibration), "{error}");
}
