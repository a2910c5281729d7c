//! `quantize.integer`: no float between the first quantization and the last dequantization, and the
//! levels that plain integer loops compute, on both runtimes, bit for bit.
#![allow(clippy::unwrap_used)] // a test may fail where it stands

use std::collections::BTreeMap;

use attar::{NewRequest, load, new_model};
use attar_compress::{Calibration, Context, PassError, pass_entry};
use attar_graph::testing::graph_from_text;
use attar_graph::{Links, Model, Node, Value, apply};
use attar_runtime::{Builtin, Ort, RunOptions, Runtime};
use attar_tensor::{DType, Tensor};
use attar_tests::{Folder, numbers, ort_library};

/// So many images of one channel.
fn images(count: usize, side: usize, seed: u64) -> Tensor {
    Tensor::new(&[count, 1, side, side], &numbers(count * side * side, seed))
}

struct One(Tensor);

impl Calibration for One {
    fn for_each_batch(
        &self,
        inputs: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        visit(&[(inputs[0].name.as_str(), &self.0)])
    }
}

fn made(architecture: &str, options: &[(&str, &str)]) -> Model {
    let folder = Folder::new(&format!("integer-{architecture}"));
    let output = folder.join("model.onnx");
    let options: Vec<(String, String)> =
        options.iter().map(|&(key, value)| (key.into(), value.into())).collect();
    let request = NewRequest { architecture, options: &options, tokenizer: None, output: &output };
    new_model(&request).unwrap();
    load(&output).unwrap()
}

/// The model after a pass, prepared and repeated as a recipe would, and what the pass says.
fn after(model: &Model, pass: &str, settings: &str, seen: &Tensor) -> (Model, Vec<String>) {
    let pass = pass_entry(pass).unwrap().build(settings.parse().unwrap()).unwrap();
    let seen = One(seen.clone());
    let context = Context { calibration: Some(&seen), ..Context::new(&Builtin) };
    let mut model = model.clone();
    let mut said = Vec::new();
    let prepared = pass.prepare(&model).unwrap();
    apply(&mut model.graph, &prepared).unwrap();
    loop {
        let plan = pass.plan(&model, &context).unwrap();
        apply(&mut model.graph, &plan).unwrap();
        model.import_domains();
        said.extend(plan.remarks.iter().chain(&plan.warnings).cloned());
        if plan.is_empty() || !pass.repeats() {
            return (model, said);
        }
    }
}

/// Integers in the shape of a tensor.
#[derive(Clone, Debug, PartialEq)]
struct Integers {
    shape: Vec<usize>,
    values: Vec<i64>,
}

/// What one node computes, by loops over integers.
fn computed(node: &Node, inputs: &[Integers], shape: &[usize]) -> Integers {
    let of = |values: Vec<i64>| Integers { shape: shape.to_vec(), values };
    let x = &inputs[0];
    match node.op_type.as_str() {
        "ConvInteger" => convolved(node, inputs, shape),
        "MatMulInteger" => {
            let (w, zero) = (&inputs[1], inputs[2].values[0]);
            let (depth, columns) = (w.shape[0], w.shape[1]);
            let sum = |i: usize| {
                let (row, column) = (i / columns, i % columns);
                (0..depth)
                    .map(|k| (x.values[row * depth + k] - zero) * w.values[k * columns + column])
                    .sum()
            };
            of((0..shape.iter().product()).map(sum).collect())
        }
        "Add" | "Mul" | "Div" => {
            let y = &inputs[1];
            let operation = |(a, b): (i64, i64)| match node.op_type.as_str() {
                "Add" => a + b,
                "Mul" => a * b,
                _ => a / b,
            };
            let at =
                |tensor: &Integers, i: usize| tensor.values[broadcast(shape, &tensor.shape, i)];
            of((0..shape.iter().product()).map(|i| operation((at(x, i), at(y, i)))).collect())
        }
        "Clip" => {
            let (low, high) = (inputs[1].values[0], inputs[2].values[0]);
            of(x.values.iter().map(|v| *v.max(&low).min(&high)).collect())
        }
        "Cast" | "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => of(x.values.clone()),
        "Gather" => of(inputs[1].values.iter().map(|&at| x.values[at as usize]).collect()),
        "Slice" => {
            let [start, axis] = [1, 3].map(|input| inputs[input].values[0] as usize);
            let inner: usize = x.shape[axis + 1..].iter().product();
            let (own, all) = (shape[axis] * inner, x.shape[axis] * inner);
            let at = |i: usize| x.values[i / own * all + start * inner + i % own];
            of((0..shape.iter().product()).map(at).collect())
        }
        "ReduceSum" => {
            let places: usize = x.shape[2..].iter().product();
            of(x.values.chunks_exact(places).map(|values| values.iter().sum()).collect())
        }
        "MaxPool" => pooled(node, x, shape),
        "Concat" => {
            let axis = node.int_or("axis", 0).unwrap() as usize;
            let inner = |tensor: &Integers| tensor.shape[axis..].iter().product::<usize>();
            let outer: usize = shape[..axis].iter().product();
            let part = |tensor: &Integers, at: usize| {
                let inner = inner(tensor);
                tensor.values[at * inner..][..inner].to_vec()
            };
            of((0..outer).flat_map(|at| inputs.iter().flat_map(move |x| part(x, at))).collect())
        }
        "Transpose" => {
            let perm = node.ints("perm").unwrap().unwrap();
            let at = |index: usize| {
                let (mut rest, mut place) = (index, 0);
                for axis in (0..shape.len()).rev() {
                    let from = perm[axis] as usize;
                    place += rest % shape[axis] * x.shape[from + 1..].iter().product::<usize>();
                    rest /= shape[axis];
                }
                x.values[place]
            };
            of((0..shape.iter().product()).map(at).collect())
        }
        other => panic!("`{}` is a {other}", node.label()),
    }
}

/// Where element `index` of `shape` is in a tensor that is broadcast to it.
fn broadcast(shape: &[usize], own: &[usize], index: usize) -> usize {
    let (mut rest, mut place, mut stride) = (index, 0, 1);
    for axis in (0..shape.len()).rev() {
        let at = rest % shape[axis];
        rest /= shape[axis];
        let own_axis = (axis + own.len()).checked_sub(shape.len());
        let size = own_axis.map_or(1, |axis| own[axis]);
        place += if size == 1 { 0 } else { at * stride };
        stride *= size;
    }
    place
}

/// Stride, padding before, and whether a place is within the image.
fn window(node: &Node) -> (usize, [usize; 2]) {
    let stride = node.ints("strides").unwrap().map_or(1, |strides| strides[0] as usize);
    let pads =
        node.ints("pads").unwrap().map_or([0, 0], |pads| [pads[0] as usize, pads[1] as usize]);
    (stride, pads)
}

fn convolved(node: &Node, inputs: &[Integers], shape: &[usize]) -> Integers {
    let (x, w, zero) = (&inputs[0], &inputs[1], inputs[2].values[0]);
    let (stride, pads) = window(node);
    let groups = node.int_or("group", 1).unwrap() as usize;
    let [outputs, depth, rows, columns] = w.shape[..] else { panic!("{:?}", w.shape) };
    let [_, channels, height, width] = x.shape[..] else { panic!("{:?}", x.shape) };
    let mut values = Vec::new();
    for image in 0..shape[0] {
        for output in 0..outputs {
            let first = output / (outputs / groups) * depth;
            for place in 0..shape[2] * shape[3] {
                let (top, left) = (place / shape[3] * stride, place % shape[3] * stride);
                let mut sum = 0;
                for k in 0..depth * rows * columns {
                    let (channel, row, column) =
                        (k / (rows * columns), k / columns % rows, k % columns);
                    let at =
                        (top + row).checked_sub(pads[0]).zip((left + column).checked_sub(pads[1]));
                    let Some((i, j)) = at.filter(|&(i, j)| i < height && j < width) else {
                        continue;
                    };
                    let source = ((image * channels + first + channel) * height + i) * width + j;
                    let weight = w.values[output * depth * rows * columns + k];
                    sum += (x.values[source] - zero) * weight;
                }
                values.push(sum);
            }
        }
    }
    Integers { shape: shape.to_vec(), values }
}

fn pooled(node: &Node, x: &Integers, shape: &[usize]) -> Integers {
    let (stride, pads) = window(node);
    let kernel = node.ints("kernel_shape").unwrap().unwrap()[0] as usize;
    let (height, width) = (x.shape[2], x.shape[3]);
    let value = |index: usize| {
        let plane = index / (shape[2] * shape[3]);
        let (row, column) = (index / shape[3] % shape[2], index % shape[3]);
        let within = (0..kernel * kernel).filter_map(|k| {
            let i = (row * stride + k / kernel).checked_sub(pads[0]).filter(|&i| i < height)?;
            let j = (column * stride + k % kernel).checked_sub(pads[1]).filter(|&j| j < width)?;
            Some(x.values[(plane * height + i) * width + j])
        });
        within.max().unwrap()
    };
    Integers { shape: shape.to_vec(), values: (0..shape.iter().product()).map(value).collect() }
}

fn integers(tensor: &Tensor) -> Integers {
    Integers { shape: tensor.shape().to_vec(), values: tensor.to_i64().unwrap() }
}

/// Everything that the model computes, as `builtin` shows it.
fn observed(model: &Model, x: &Tensor) -> BTreeMap<String, Tensor> {
    let outputs = model.graph.nodes.iter().flat_map(|node| node.outputs.iter().cloned());
    let options = RunOptions { observed: outputs.collect(), ..RunOptions::default() };
    let mut session = Builtin.load(model, &options).unwrap();
    let input = session.inputs()[0].name.clone();
    let mut values = BTreeMap::new();
    let mut keep = |name: &str, tensor: &Tensor| {
        values.insert(name.to_string(), tensor.clone());
    };
    session.observe(&[(input.as_str(), x)], &mut keep).unwrap();
    values
}

/// The sums before the last dequantization, by plain loops from the first quantization on.
fn by_loops(model: &Model, x: &Tensor) -> Integers {
    let links = Links::new(&model.graph);
    let shown = observed(model, &x.clone());
    let mut known: BTreeMap<&str, Integers> = BTreeMap::new();
    let mut last = None;
    for node in &model.graph.nodes {
        let output = node.outputs[0].as_str();
        match node.op_type.as_str() {
            // The first thing that is done: both sides begin with its levels.
            "QuantizeLinear" => {
                known.insert(output, integers(&shown[output]));
            }
            "DequantizeLinear" => last = known.get(node.inputs[0].as_str()).cloned(),
            "Constant" => {}
            _ => {
                let input = |name: &String| {
                    let constant = links.constant(name);
                    known.get(name.as_str()).cloned().or(constant.map(integers)).unwrap()
                };
                let inputs: Vec<Integers> =
                    node.inputs.iter().filter(|name| !name.is_empty()).map(input).collect();
                let found = computed(node, &inputs, shown[output].shape());
                known.insert(output, found);
            }
        }
    }
    last.expect("the last node dequantizes")
}

fn run(runtime: &dyn Runtime, model: &Model, x: &Tensor) -> Vec<u32> {
    let mut session = runtime.load(model, &RunOptions::default()).unwrap();
    let input = session.inputs()[0].name.clone();
    let outputs = session.run(&[(input.as_str(), x)]).unwrap();
    outputs[0].values::<f32>().iter().map(|y| y.to_bits()).collect()
}

#[test]
fn runtimes_give_the_integers_of_plain_loops() {
    let cases: [(&str, &[(&str, &str)], usize, usize); 3] = [
        ("lenet", &[("size", "12")], 12, 10_000),
        ("resnet", &[("depth", "8"), ("size", "16"), ("channels", "1"), ("width", "0.25")], 16, 60),
        ("mobilenet_v2", &[("size", "32"), ("channels", "1"), ("width", "0.25")], 32, 20),
    ];
    for (architecture, options, side, count) in cases {
        let original = made(architecture, options);
        let seen = images(32, side, 1);
        // Other factors in the weights draw other levels that fall to either side, which 52 layers of
        // random weights make large; what is computed with them is constants alike.
        let settings = "smooth = \"off\"\nkeep_float = \"off\"\nequalize = false";
        let (quantized, _) = after(&original, "quantize.static", settings, &seen);
        check(&original, &quantized, count, architecture, |count, seed| images(count, side, seed));
    }
}

#[test]
fn equalized_channels_are_integers_of_plain_loops() {
    let mut graph = graph_from_text(
        "x: f32[n, 1, 16, 16]\na = Conv(x, first)\nr = Relu(a)\nc = Conv(r, next)\nd = Add(r, c)\n\
         e = Relu(d)\nl = Conv(e, last)\np = GlobalAveragePool(l)\nf = Flatten(p)\ny = Gemm(f, v)",
    );
    for (name, shape) in [
        ("first", vec![8, 1, 3, 3]),
        ("next", vec![8, 8, 1, 1]),
        ("last", vec![6, 8, 3, 3]),
        ("v", vec![6, 5]),
    ] {
        let values = numbers(shape.iter().product(), name.as_bytes()[0].into());
        graph.set_initializer(name, Tensor::new(&shape, &values));
    }
    // The residual sum has channels that are forty times others.
    for (name, inner) in [("first", 9), ("next", 8)] {
        let tensor = graph.constant(name).unwrap().clone();
        let by = |(i, w): (usize, &f32)| if i / inner % 4 == 0 { 20.0 * w } else { 0.5 * w };
        let values: Vec<f32> = tensor.slice::<f32>().iter().enumerate().map(by).collect();
        graph.set_initializer(name, Tensor::new(tensor.shape(), &values));
    }
    graph.inputs.retain(|input| input.name == "x");
    let opsets = [(String::new(), 17)].into_iter().collect();
    let original = Model { ir_version: 8, opsets, graph, ..Model::default() };
    let seen = images(64, 16, 1);
    let settings = "smooth = \"off\"\nkeep_float = \"off\"\nequalize = true";
    let (quantized, said) = after(&original, "quantize.static", settings, &seen);
    assert!(said.iter().any(|line| line.contains("one range")), "nothing is equalized: {said:?}");
    check(&original, &quantized, 500, "equalized", |count, seed| images(count, 16, seed));
}

#[test]
fn an_lstm_of_integers_is_plain_loops() {
    let (steps, input, hidden) = (8, 12, 10);
    let mut graph = graph_from_text(&format!(
        "x: f32[{steps}, n, {input}]\na, h = LSTM(x, w, r, b, hidden_size={hidden})\n\
         s = Squeeze(h, first)\ny = Gemm(s, v, k)"
    ));
    for (name, shape) in [
        ("w", vec![1, 4 * hidden, input]),
        ("r", vec![1, 4 * hidden, hidden]),
        ("b", vec![1, 8 * hidden]),
        ("v", vec![hidden, 5]),
        ("k", vec![5]),
    ] {
        let values = numbers(shape.iter().product(), name.as_bytes()[0].into());
        let values: Vec<f32> = values.iter().map(|x| 0.4 * x).collect();
        graph.set_initializer(name, Tensor::new(&shape, &values));
    }
    graph.set_initializer("first", Tensor::new(&[1], &[0_i64]));
    graph.inputs.retain(|input| input.name == "x");
    graph.outputs.retain(|output| output.name == "y");
    let opsets = [(String::new(), 17)].into_iter().collect();
    let original = Model { ir_version: 8, opsets, graph, ..Model::default() };
    let series = |count: usize, seed: u64| {
        Tensor::new(&[steps, count, input], &numbers(steps * count * input, seed))
    };
    check_unrolled(&original, 1000, "LSTM", series);
}

/// That a recurrent network, unrolled and everything in 8 bits, is integers of plain loops, and stays by
/// the float network over its steps. Returns it before it is integers alone.
fn check_unrolled(
    original: &Model,
    count: usize,
    name: &str,
    series: impl Fn(usize, u64) -> Tensor,
) -> Model {
    let seen = series(40, 1);
    let (unrolled, _) = after(original, "unroll", "", &seen);
    let (unrolled, _) = after(&unrolled, "cleanup", "", &seen);
    let settings = "smooth = \"off\"\ncarry = \"all\"\nkeep_float = \"off\"";
    let (quantized, _) = after(&unrolled, "quantize.static", settings, &seen);
    check(original, &quantized, count, name, &series);
    let x = series(200, 9);
    let lost = relative_error(&run(&Builtin, &quantized, &x), &run(&Builtin, original, &x));
    assert!(lost < 0.05, "{name}: {lost}");
    quantized
}

#[test]
fn two_directions_and_constants_are_plain_loops() {
    let (steps, input, hidden) = (5, 6, 8);
    let mut graph = graph_from_text(&format!(
        "x: f32[{steps}, n, {input}]\n\
         a, h = LSTM(x, w, r, b, hidden_size={hidden}, direction=bidirectional)\n\
         t = Transpose(h, perm=1,0,2)\ns = Reshape(t, sizes)\np = Add(s, shift)\n\
         m = Mul(gain, p)\ny = Gemm(m, v, k)"
    ));
    for (name, shape) in [
        ("w", vec![2, 4 * hidden, input]),
        ("r", vec![2, 4 * hidden, hidden]),
        ("b", vec![2, 8 * hidden]),
        ("shift", vec![2 * hidden]),
        ("gain", vec![1, 2 * hidden]),
        ("v", vec![2 * hidden, 5]),
        ("k", vec![5]),
    ] {
        let values = numbers(shape.iter().product(), name.as_bytes()[0].into());
        let values: Vec<f32> = values.iter().map(|x| 0.5 * x).collect();
        graph.set_initializer(name, Tensor::new(&shape, &values));
    }
    graph.set_initializer("sizes", Tensor::new(&[2], &[-1_i64, 2 * hidden as i64]));
    graph.inputs.retain(|input| input.name == "x");
    graph.outputs.retain(|output| output.name == "y");
    let opsets = [(String::new(), 17)].into_iter().collect();
    let original = Model { ir_version: 8, opsets, graph, ..Model::default() };
    let series = |count: usize, seed: u64| {
        Tensor::new(&[steps, count, input], &numbers(steps * count * input, seed))
    };
    let quantized = check_unrolled(&original, 500, "two directions", series);
    assert!(quantized.graph.nodes.iter().any(|node| node.is("Concat")), "they are not joined");
}

/// ‖a − b‖ / ‖b‖ of values by their bits.
fn relative_error(a: &[u32], b: &[u32]) -> f32 {
    let real = |bits: &u32| f32::from_bits(*bits);
    let lost: f32 = a.iter().zip(b).map(|(a, b)| (real(a) - real(b)).powi(2)).sum();
    let power: f32 = b.iter().map(|b| real(b).powi(2)).sum();
    (lost / power).sqrt()
}

/// That the integer form of `quantized` gives the integers of plain loops on both runtimes, for so many
/// examples of `inputs`, and nearly what the form with floats in between gives.
fn check(
    original: &Model,
    quantized: &Model,
    count: usize,
    name: &str,
    inputs: impl Fn(usize, u64) -> Tensor,
) {
    let ort = Ort::find(Some(&ort_library())).unwrap();
    let (model, said) = after(quantized, "quantize.integer", "", &inputs(1, 1));
    assert!(said.iter().any(|line| line.starts_with("no float is left")), "{said:?}");
    let facts = attar_ops::infer_graph(&model);
    for node in &model.graph.nodes {
        let is_end = node.is("DequantizeLinear") && model.graph.is_output(&node.outputs[0]);
        let makes = facts.get(&node.outputs[0]).map(|fact| fact.dtype);
        assert!(is_end || makes.is_none_or(|dtype| !dtype.is_float()), "{}", node.label());
    }
    for first in (0..count).step_by(500) {
        let x = inputs((count - first).min(500), 7 + first as u64);
        let sums = by_loops(&model, &x);
        let end = model.graph.nodes.iter().find(|node| node.is("DequantizeLinear")).unwrap();
        assert_eq!(sums, integers(&observed(&model, &x)[&end.inputs[0]]), "{name}");
        let scales = model.graph.constant(&end.inputs[1]).unwrap().to_f32().unwrap();
        let real = |(i, sum): (usize, &i64)| (*sum as f32 * scales[i % scales.len()]).to_bits();
        let expected: Vec<u32> = sums.values.iter().enumerate().map(real).collect();
        assert_eq!(run(&Builtin, &model, &x), expected, "{name}, builtin");
        assert_eq!(run(&ort, &model, &x), expected, "{name}, ONNX Runtime");
    }
    // The same as with floats in between, but for levels that fall to either side.
    let x = inputs(20, 5);
    let lost = relative_error(&run(&Builtin, &model, &x), &run(&Builtin, quantized, &x));
    assert!(lost < 0.02, "{name}: {lost}");
    assert!(model.graph.inputs == original.graph.inputs);
    assert_eq!(model.graph.outputs[0].dtype(), Some(DType::F32));
}
