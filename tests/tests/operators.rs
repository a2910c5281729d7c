//! Every operator on `builtin` against ONNX Runtime, over many shapes.

use std::collections::BTreeMap;

use attar_graph::testing::graph_from_text;
use attar_graph::{AttributeValue, Model};
use attar_ops::OPERATORS;
use attar_runtime::{Builtin, Ort, RunOptions, Runtime};
use attar_tensor::Tensor;
use attar_tests::{numbers, ort_library};

/// A graph as text and what it is fed.
struct Case {
    text: String,
    feeds: Vec<(&'static str, Tensor)>,
    opset: i64,
    /// Largest difference allowed, relative to the largest value of the output; 0 asks for the
    /// same bits. f32 sums of a few hundred terms differ by their order in the sixth digit.
    tolerance: f64,
}

fn case(text: impl Into<String>, feeds: Vec<(&'static str, Tensor)>) -> Case {
    Case { text: text.into(), feeds, opset: 17, tolerance: 2e-6 }
}

impl Case {
    fn opset(mut self, opset: i64) -> Self {
        self.opset = opset;
        self
    }

    fn exact(mut self) -> Self {
        self.tolerance = 0.0;
        self
    }

    fn within(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }
}

fn f32s(shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    Tensor::new(shape, &numbers(count, count as u64 + shape.len() as u64))
}

fn positive(shape: &[usize]) -> Tensor {
    let values: Vec<f32> = f32s(shape).slice::<f32>().iter().map(|x| x.abs() + 0.1).collect();
    Tensor::new(shape, &values)
}

fn i64s(values: &[i64]) -> Tensor {
    Tensor::new(&[values.len()], values)
}

fn bytes_u8(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::new(shape, &(0..count).map(|i| (i * 97 % 256) as u8).collect::<Vec<_>>())
}

fn bytes_i8(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::new(shape, &(0..count).map(|i| (i * 89 % 255) as u8 as i8).collect::<Vec<_>>())
}

fn bools(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::from_bools(shape, &(0..count).map(|i| i % 3 != 1).collect::<Vec<_>>())
}

fn declared(name: &str, tensor: &Tensor) -> String {
    let dims: Vec<String> = tensor.shape().iter().map(ToString::to_string).collect();
    format!("{name}: {}[{}]\n", tensor.dtype(), dims.join(", "))
}

fn model_of(case: &Case) -> Model {
    let mut text: String = case.feeds.iter().map(|(name, tensor)| declared(name, tensor)).collect();
    text.push_str(&case.text);
    let mut graph = graph_from_text(&text);
    for output in &mut graph.outputs {
        output.value_type = None;
    }
    // `Cast` names its type by number; `Constant` values cannot be written as text.
    for node in graph.nodes.iter_mut().filter(|node| node.is("Constant")) {
        let value = AttributeValue::from(Tensor::new(&[2], &[1.5_f32, -2.0]));
        node.attributes.insert("value".into(), value.into());
    }
    Model {
        ir_version: 9,
        opsets: [(String::new(), case.opset)].into_iter().collect(),
        graph,
        ..Model::default()
    }
}

fn run(runtime: &dyn Runtime, model: &Model, case: &Case) -> Vec<Tensor> {
    let feeds: Vec<(&str, &Tensor)> = case.feeds.iter().map(|(name, t)| (*name, t)).collect();
    let result = runtime.load(model, &RunOptions::default()).and_then(|mut s| s.run(&feeds));
    result.unwrap_or_else(|error| panic!("{}: {}: {error}", runtime.name(), case.text))
}

fn numbers_of(tensor: &Tensor) -> Vec<f64> {
    tensor.to_f64().expect("an output holds numbers")
}

/// Largest difference over the largest finite magnitude expected.
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (numbers_of(found), numbers_of(expected));
    let scale = expected.iter().filter(|x| x.is_finite()).fold(1e-30, |m: f64, x| m.max(x.abs()));
    let differ = |a: f64, b: f64| match (a.is_nan(), b.is_nan()) {
        (true, true) => 0.0,
        _ if a == b => 0.0,
        _ => (a - b).abs() / scale,
    };
    let worst = found.iter().zip(&expected).map(|(&a, &b)| differ(a, b));
    worst.fold(0.0, |m, d| if d.is_nan() || d > m { d } else { m })
}

fn check(cases: &[Case]) {
    let mut ort = Ort::find(Some(&ort_library())).expect("./test.sh fetches ONNX Runtime");
    ort.optimize = false;
    for case in cases {
        let model = model_of(case);
        let (found, expected) = (run(&Builtin, &model, case), run(&ort, &model, case));
        assert_eq!(found.len(), expected.len(), "{}", case.text);
        for (found, expected) in found.iter().zip(&expected) {
            let shapes: Vec<_> = case.feeds.iter().map(|(_, t)| t.shape()).collect();
            let place = format!("{} on {shapes:?}", case.text);
            assert_eq!(found.dtype(), expected.dtype(), "{place}");
            assert_eq!(found.shape(), expected.shape(), "{place}");
            let worst = difference(found, expected);
            assert!(worst <= case.tolerance, "{place}: differs by {worst:e}");
        }
    }
}

fn elementwise() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes: &[[&[usize]; 2]] = &[
        [&[3], &[3]],
        [&[2, 3, 4], &[4]],
        [&[4], &[2, 3, 4]],
        [&[2, 3, 4], &[2, 1, 4]],
        [&[5, 1, 7], &[1, 6, 1]],
        [&[2, 8, 5, 5], &[8, 1, 1]],
        [&[], &[3, 2]],
        [&[0, 3], &[3]],
        [&[33, 129], &[33, 129]],
    ];
    for [a, b] in shapes {
        for op in ["Add", "Sub", "Mul", "Div"] {
            let feeds = vec![("a", f32s(a)), ("b", positive(b))];
            cases.push(case(format!("y = {op}(a, b)"), feeds).within(1e-7));
        }
        let feeds = || vec![("a", positive(a)), ("b", f32s(b))];
        cases.push(case("y = Pow(a, b)", feeds()));
        for op in ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"] {
            cases.push(case(format!("y = {op}(a, b)"), feeds()).exact());
        }
        for op in ["And", "Or"] {
            let feeds = vec![("a", bools(a)), ("b", bools(b))];
            cases.push(case(format!("y = {op}(a, b)"), feeds).exact());
        }
        for op in ["Min", "Max"] {
            cases.push(case(format!("y = {op}(a, b)"), feeds()).exact());
        }
        let feeds = vec![("c", bools(a)), ("a", f32s(b)), ("b", f32s(&[1]))];
        cases.push(case("y = Where(c, a, b)", feeds).exact());
    }
    let integers = || vec![("a", i64s(&[7, -7, 5, -8, 0])), ("b", i64s(&[3, 3, -2, -3, 4]))];
    for op in ["Add", "Sub", "Mul", "Div", "Mod", "Equal", "Less"] {
        cases.push(case(format!("y = {op}(a, b)"), integers()).exact());
    }
    cases.push(case("y = Mod(a, b, fmod=1)", integers()).exact());
    cases.push(
        case("y = Pow(a, b)", vec![("a", i64s(&[2, -3, 5])), ("b", i64s(&[10, 3, 0]))]).exact(),
    );
    cases.push(case("y = Not(a)", vec![("a", bools(&[3, 2]))]).exact());
    let wide = Tensor::new(&[9], &[-1e9_f32, -90.0, -20.0, -1.0, 0.0, 1e-8, 1.0, 20.0, 88.0]);
    for x in [f32s(&[1]), f32s(&[7, 33]), f32s(&[2, 3, 64]), f32s(&[0]), wide] {
        let unary = ["Abs", "Ceil", "Erf", "Exp", "Floor", "HardSwish", "Neg", "Relu", "Round"];
        for op in unary {
            cases.push(case(format!("y = {op}(x)"), vec![("x", x.clone())]));
        }
        for op in ["Sigmoid", "Tanh", "HardSigmoid", "LeakyRelu"] {
            cases.push(case(format!("y = {op}(x)"), vec![("x", x.clone())]));
        }
        cases.push(case("y = Gelu(x)", vec![("x", x.clone())]).opset(20));
        cases.push(case("y = Gelu(x, approximate=tanh)", vec![("x", x.clone())]).opset(20));
        cases.push(case("y = Identity(x)", vec![("x", x.clone())]).exact());
        cases.push(case("y = Dropout(x)", vec![("x", x.clone())]).exact());
        let scalar = |value: f32| Tensor::scalar(value);
        let feeds = vec![("x", x.clone()), ("low", scalar(-0.5)), ("high", scalar(0.75))];
        cases.push(case("y = Clip(x, low, high)", feeds).exact());
        for to in [1, 6, 7, 9, 11] {
            let small = Tensor::new(&[5], &[-2.7_f32, -0.2, 0.0, 0.9, 100.4]);
            cases.push(case(format!("y = Cast(x, to={to})"), vec![("x", small)]).exact());
        }
    }
    for op in ["Log", "Sqrt", "Reciprocal"] {
        cases.push(case(format!("y = {op}(x)"), vec![("x", positive(&[5, 21]))]));
    }
    cases.push(case("y = LeakyRelu(x, alpha=0.3)", vec![("x", f32s(&[40]))]));
    cases.push(case("y = Cast(x, to=1)", vec![("x", i64s(&[1, -5, 1 << 40]))]).exact());
    cases
}

#[allow(clippy::too_many_lines)] // a table
fn shaping() -> Vec<Case> {
    let x = || ("x", f32s(&[2, 3, 4, 5]));
    let mut cases = vec![
        case("c = Constant()\ny = Add(c, x)", vec![("x", f32s(&[3, 2]))]).exact(),
        case("y = Shape(x)", vec![x()]).exact(),
        case("y = Shape(x, start=1, end=-1)", vec![x()]).opset(15).exact(),
        case("y = Flatten(x)", vec![x()]).exact(),
        case("y = Flatten(x, axis=0)", vec![x()]).exact(),
        case("y = Flatten(x, axis=-1)", vec![x()]).exact(),
        case("y = Transpose(x)", vec![x()]).exact(),
        case("y = Concat(x, z, axis=2)", vec![x(), ("z", f32s(&[2, 3, 1, 5]))]).exact(),
        case("y = Concat(x, z, axis=-1)", vec![("x", f32s(&[3, 0])), ("z", f32s(&[3, 2]))]).exact(),
        case("a, b = Split(x, axis=2)", vec![x()]).exact(),
        case("a, b, c = Split(x, s, axis=3)", vec![x(), ("s", i64s(&[1, 3, 1]))]).exact(),
        case("y = ConstantOfShape(s)", vec![("s", i64s(&[2, 0, 3]))]).exact(),
        case("y = ConstantOfShape(s)", vec![("s", i64s(&[2, 3]))]).exact(),
    ];
    for perm in ["0,2,1,3", "0,1,3,2", "3,2,1,0", "1,0,2,3", "0,2,3,1", "0,1,2,3"] {
        cases.push(case(format!("y = Transpose(x, perm={perm})"), vec![x()]).exact());
        let wide = ("x", f32s(&[1, 33, 12, 32]));
        cases.push(case(format!("y = Transpose(x, perm={perm})"), vec![wide]).exact());
        let bytes = ("x", bytes_u8(&[2, 3, 1, 4]));
        cases.push(case(format!("y = Transpose(x, perm={perm})"), vec![bytes]).exact());
    }
    for target in [&[0, -1][..], &[6, 20], &[2, 3, 4, 5], &[-1], &[0, 0, 2, -1, 5]] {
        cases.push(case("y = Reshape(x, s)", vec![x(), ("s", i64s(target))]).exact());
    }
    for shape in [&[2, 1, 4][..], &[1], &[3, 1, 1]] {
        let feeds = vec![("x", f32s(&[1, 4])), ("s", i64s(shape))];
        cases.push(case("y = Expand(x, s)", feeds).exact());
    }
    for axes in [&[0][..], &[-1, 1], &[0, 4]] {
        let feeds = vec![("x", f32s(&[2, 3, 4])), ("a", i64s(axes))];
        cases.push(case("y = Unsqueeze(x, a)", feeds).exact());
    }
    cases.push(case("y = Unsqueeze(x, axes=0)", vec![("x", f32s(&[3]))]).opset(11).exact());
    cases.push(case("y = Squeeze(x, axes=0)", vec![("x", f32s(&[1, 3, 1]))]).opset(11).exact());
    cases.push(case("y = Squeeze(x)", vec![("x", f32s(&[1, 3, 1]))]).exact());
    cases
        .push(case("y = Squeeze(x, a)", vec![("x", f32s(&[1, 3, 1])), ("a", i64s(&[-1]))]).exact());
    let slices: &[[&[i64]; 4]] = &[
        [&[1], &[3], &[2], &[1]],
        [&[-1], &[-100], &[3], &[-2]],
        [&[0, 1], &[2, i64::MAX], &[1, -1], &[1, 2]],
        [&[5], &[1], &[0], &[1]],
    ];
    for [starts, ends, axes, steps] in slices {
        let feeds = vec![
            x(),
            ("s", i64s(starts)),
            ("e", i64s(ends)),
            ("a", i64s(axes)),
            ("t", i64s(steps)),
        ];
        cases.push(case("y = Slice(x, s, e, a, t)", feeds).exact());
    }
    for (axis, indices) in [(0, vec![1_i64, 0, 1]), (1, vec![-1, 2]), (-1, vec![]), (3, vec![4])] {
        let feeds = vec![x(), ("i", i64s(&indices))];
        cases.push(case(format!("y = Gather(x, i, axis={axis})"), feeds).exact());
    }
    let matrix = Tensor::new(&[2, 2], &[1_i64, 0, 2, -3]);
    cases.push(case("y = Gather(x, i)", vec![("x", f32s(&[3, 5])), ("i", matrix)]).exact());
    let scalar = |value: i64| Tensor::scalar(value);
    for (start, limit, delta) in [(0, 5, 1), (10, 0, -3), (3, 3, 1)] {
        let feeds = vec![("a", scalar(start)), ("b", scalar(limit)), ("c", scalar(delta))];
        cases.push(case("y = Range(a, b, c)", feeds).exact());
    }
    for (axis, settings) in [(0, ""), (2, ", reverse=1"), (-1, ", exclusive=1")] {
        let feeds = vec![("x", f32s(&[2, 3, 4])), ("a", Tensor::scalar(axis as i64))];
        cases.push(case(format!("y = CumSum(x, a{settings})"), feeds).within(1e-6));
    }
    cases
}

fn products() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes: &[[&[usize]; 2]] = &[
        [&[1, 1], &[1, 1]],
        [&[5, 7], &[7, 3]],
        [&[1, 384], &[384, 100]],
        [&[2, 16, 384], &[384, 130]],
        [&[2, 3, 4, 5], &[2, 3, 5, 6]],
        [&[2, 1, 4, 5], &[3, 5, 6]],
        [&[5], &[5, 3]],
        [&[4, 5], &[5]],
        [&[7], &[7]],
        [&[0, 5], &[5, 3]],
        [&[129, 300], &[300, 65]],
    ];
    for [a, b] in shapes {
        cases.push(case("y = MatMul(a, b)", vec![("a", f32s(a)), ("b", f32s(b))]).within(4e-6));
    }
    for (a, b, settings) in [
        (&[3, 5], &[5, 4], ""),
        (&[5, 3], &[5, 4], ", transA=1"),
        (&[3, 5], &[4, 5], ", transB=1"),
        (&[5, 3], &[4, 5], ", transA=1, transB=1"),
        (&[3, 5], &[4, 5], ", transB=1, alpha=0.5, beta=2.0"),
    ] {
        for c in [&[4][..], &[3, 4], &[3, 1], &[]] {
            let feeds = vec![("a", f32s(a)), ("b", f32s(b)), ("c", f32s(c))];
            cases.push(case(format!("y = Gemm(a, b, c{settings})"), feeds).within(4e-6));
        }
        let feeds = vec![("a", f32s(a)), ("b", f32s(b))];
        cases.push(case(format!("y = Gemm(a, b{settings})"), feeds).within(4e-6));
    }
    for [a, b] in [[&[5, 70][..], &[70, 33][..]], [&[2, 3, 8], &[8, 4]], [&[2, 3, 8], &[2, 8, 4]]] {
        let pairs = [
            (bytes_u8(a), bytes_i8(b), Tensor::scalar(7_u8), Tensor::scalar(0_i8)),
            (bytes_u8(a), bytes_u8(b), Tensor::scalar(130_u8), Tensor::scalar(120_u8)),
            (bytes_u8(a), bytes_i8(b), Tensor::scalar(255_u8), Tensor::scalar(-9_i8)),
        ];
        for (x, w, x_zero, w_zero) in pairs {
            let feeds = vec![("a", x.clone()), ("b", w.clone()), ("p", x_zero), ("q", w_zero)];
            cases.push(case("y = MatMulInteger(a, b, p, q)", feeds).exact());
            let feeds = vec![("a", x), ("b", w)];
            cases.push(case("y = MatMulInteger(a, b)", feeds).exact());
        }
    }
    cases
}

fn images() -> Vec<Case> {
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

fn rows() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [&[3, 5][..], &[2, 12, 7, 33], &[1, 1], &[4, 128], &[3, 0]] {
        for axis in [-1, 0] {
            let feeds = vec![("x", f32s(shape))];
            cases.push(case(format!("y = Softmax(x, axis={axis})"), feeds));
        }
        let last = shape[shape.len() - 1];
        if last > 0 {
            let feeds = vec![("x", f32s(shape)), ("s", f32s(&[last])), ("b", f32s(&[last]))];
            cases.push(case("y = LayerNormalization(x, s, b)", feeds.clone()).within(5e-6));
            let text = "y = LayerNormalization(x, s, epsilon=0.00001)";
            cases.push(case(text, feeds[..2].to_vec()).within(5e-6));
        }
        for op in ["ReduceSum", "ReduceMean", "ReduceL2", "ReduceMax", "ReduceMin"] {
            if last == 0 {
                continue;
            }
            for settings in ["", ", keepdims=0"] {
                let all = format!("y = {op}(x{settings})");
                cases.push(case(all, vec![("x", f32s(shape))]).within(1e-5));
                for axes in [&[-1][..], &[0], &[0, 1]] {
                    let feeds = vec![("x", f32s(shape)), ("a", i64s(axes))];
                    let text = format!("y = {op}(x, a{settings})");
                    cases.push(case(text, feeds).opset(18).within(1e-5));
                }
            }
        }
    }
    cases.push(
        case("y = ReduceMean(x, axes=1)", vec![("x", f32s(&[2, 3, 4]))]).opset(11).within(1e-6),
    );
    let feeds = vec![("x", f32s(&[2, 3, 4])), ("s", f32s(&[3, 4])), ("b", f32s(&[3, 4]))];
    cases.push(case("y = LayerNormalization(x, s, b, axis=1)", feeds).within(5e-6));
    cases
}

fn quantized() -> Vec<Case> {
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

fn all_cases() -> Vec<Case> {
    [elementwise(), shaping(), products(), images(), rows(), quantized()]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn elementwise_operators_equal_onnx_runtime() {
    check(&elementwise());
}

#[test]
fn shaping_operators_equal_onnx_runtime() {
    check(&shaping());
}

#[test]
fn products_equal_onnx_runtime() {
    check(&products());
}

#[test]
fn image_operators_equal_onnx_runtime() {
    check(&images());
}

#[test]
fn row_operators_equal_onnx_runtime() {
    check(&rows());
}

#[test]
fn quantizing_operators_equal_onnx_runtime() {
    check(&quantized());
}

#[test]
fn every_standard_operator_has_cases() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let cases = all_cases();
    let models: Vec<Model> = cases.iter().map(model_of).collect();
    for node in models.iter().flat_map(|model| &model.graph.nodes) {
        *counts.entry(node.op_type.as_str()).or_default() += 1;
    }
    for operator in OPERATORS.iter().filter(|operator| operator.domain().is_empty()) {
        assert!(counts.contains_key(operator.op_type()), "{} has no case", operator.op_type());
    }
}

#[test]
fn inferred_shapes_are_those_that_runs_give() {
    for case in all_cases() {
        let model = model_of(&case);
        let facts = attar_ops::infer_graph(&model);
        assert!(facts.problems.is_empty(), "{}: {:?}", case.text, facts.problems);
        let found = run(&Builtin, &model, &case);
        for (output, tensor) in model.graph.outputs.iter().zip(&found) {
            let fact = facts.get(&output.name).unwrap();
            assert_eq!(fact.dtype, tensor.dtype(), "{}", case.text);
            let Some(dims) = &fact.shape else { continue };
            assert_eq!(dims.len(), tensor.rank(), "{}", case.text);
            for (dim, &size) in dims.iter().zip(tensor.shape()) {
                assert!(
                    dim.known().is_none_or(|dim| dim == size as i64),
                    "{}: {dims:?}",
                    case.text
                );
            }
        }
    }
}
