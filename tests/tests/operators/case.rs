//! One case: a graph as text, what it is fed, and how it is held against ONNX Runtime.

use attar_graph::testing::graph_from_text;
use attar_graph::{AttributeValue, Model};
use attar_runtime::{Builtin, Ort, RunOptions, Runtime};
use attar_tensor::{Bytes, DType, Tensor};
use attar_tests::{numbers, ort_library};

/// A graph as text and what it is fed.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) text: String,
    pub(crate) feeds: Vec<(&'static str, Tensor)>,
    /// What is known when the model is loaded.
    pub(crate) constants: Vec<(&'static str, Tensor)>,
    opset: i64,
    /// Graphs inside the first node, by attribute.
    bodies: Vec<(&'static str, &'static str)>,
    /// Attributes that the text cannot say, by node.
    attributes: Vec<(usize, &'static str, AttributeValue)>,
    /// Domain of the nodes, and its version.
    domain: Option<(&'static str, i64)>,
    /// What ONNX Runtime runs instead, where it does not know the operator.
    equivalent: Option<String>,
    /// Nodes of the newest opset that say the same in f64, where the operator knows f32 alone, with
    /// the attributes of the first that the text cannot say.
    in_f64: Option<(String, Vec<(&'static str, AttributeValue)>)>,
    /// Largest difference allowed, relative to the largest value of the output; 0 asks for the
    /// same bits. f32 sums of a few hundred terms differ by their order in the sixth digit.
    pub(crate) tolerance: f64,
}

pub(crate) fn case(text: impl Into<String>, feeds: Vec<(&'static str, Tensor)>) -> Case {
    Case {
        text: text.into(),
        feeds,
        constants: Vec::new(),
        opset: 17,
        bodies: Vec::new(),
        attributes: Vec::new(),
        domain: None,
        equivalent: None,
        in_f64: None,
        tolerance: 2e-6,
    }
}

impl Case {
    pub(crate) fn opset(mut self, opset: i64) -> Self {
        self.opset = opset;
        self
    }

    /// Puts a graph into the first node. What it reads of the outer graph is captured.
    pub(crate) fn body(mut self, attribute: &'static str, text: &'static str) -> Self {
        self.bodies.push((attribute, text));
        self
    }

    /// Gives the node at `index` an attribute.
    pub(crate) fn attribute(
        mut self,
        index: usize,
        name: &'static str,
        value: impl Into<AttributeValue>,
    ) -> Self {
        self.attributes.push((index, name, value.into()));
        self
    }

    pub(crate) fn domain(mut self, domain: &'static str, version: i64) -> Self {
        self.domain = Some((domain, version));
        self
    }

    /// Makes some of the feeds constants.
    pub(crate) fn constant(mut self, names: &[&str]) -> Self {
        let is_constant = |(name, _): &(&str, Tensor)| names.contains(name);
        let (constants, feeds) = self.feeds.into_iter().partition(is_constant);
        self.feeds = feeds;
        self.constants.extend::<Vec<_>>(constants);
        self
    }

    pub(crate) fn exact(mut self) -> Self {
        self.tolerance = 0.0;
        self
    }

    /// Random numbers: only their count and type are those of ONNX Runtime.
    pub(crate) fn any_values(self) -> Self {
        self.within(f64::INFINITY)
    }

    pub(crate) fn equivalent_to(mut self, text: &str) -> Self {
        self.equivalent = Some(text.into());
        self
    }

    pub(crate) fn in_f64(mut self, text: impl Into<String>) -> Self {
        self.in_f64 = Some((text.into(), Vec::new()));
        self
    }

    /// As the Einsum of an equation, whose result `after` reads as `einsum`.
    pub(crate) fn einsum_in_f64(mut self, equation: &str, inputs: &str, after: &str) -> Self {
        let text = format!("einsum = Einsum({inputs})\n{after}");
        self.in_f64 = Some((text, vec![("equation", equation.into())]));
        self
    }

    /// The model whose run in f64 gradients are held against.
    pub(crate) fn model_in_f64(&self) -> Option<Model> {
        let (text, attributes) = self.in_f64.as_ref()?;
        let plain = Self {
            attributes: attributes.iter().map(|(name, value)| (0, *name, value.clone())).collect(),
            domain: None,
            opset: attar_ops::opset::NEWEST_OPSET,
            ..self.clone()
        };
        Some(model_of_text(&plain, text))
    }

    pub(crate) fn within(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }
}

pub(crate) fn f32s(shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    Tensor::new(shape, &numbers(count, count as u64 + shape.len() as u64))
}

pub(crate) fn positive(shape: &[usize]) -> Tensor {
    let values: Vec<f32> = f32s(shape).slice::<f32>().iter().map(|x| x.abs() + 0.1).collect();
    Tensor::new(shape, &values)
}

pub(crate) fn i64s(values: &[i64]) -> Tensor {
    Tensor::new(&[values.len()], values)
}

pub(crate) fn bytes_u8(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::new(shape, &(0..count).map(|i| (i * 97 % 256) as u8).collect::<Vec<_>>())
}

pub(crate) fn bytes_i8(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::new(shape, &(0..count).map(|i| (i * 89 % 255) as u8 as i8).collect::<Vec<_>>())
}

/// Signed weights of an integer product with unsigned levels: of all 8 bits, or of 7 where ONNX
/// Runtime adds two products in 16 bits, which full ones pass on processors without VNNI.
pub(crate) fn weights_i8(shape: &[usize]) -> Tensor {
    let levels = bytes_i8(shape);
    let levels: Vec<i8> = levels.slice::<i8>().iter().map(|&q| weight_i8(q)).collect();
    Tensor::new(shape, &levels)
}

/// A signed weight in the bits that `weights_i8` draws.
pub(crate) fn weight_i8(level: i8) -> i8 {
    if sums_saturate() { level >> 1 } else { level }
}

#[cfg(target_arch = "x86_64")]
fn sums_saturate() -> bool {
    !is_x86_feature_detected!("avx512vnni") && !is_x86_feature_detected!("avxvnni")
}

#[cfg(not(target_arch = "x86_64"))]
fn sums_saturate() -> bool {
    false
}

pub(crate) fn bools(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::from_bools(shape, &(0..count).map(|i| i % 3 != 1).collect::<Vec<_>>())
}

/// Numbers of any type; those of integers lie within ±100, or 0 to 100.
pub(crate) fn typed(dtype: DType, shape: &[usize]) -> Tensor {
    let x = f32s(shape);
    if dtype.is_float() {
        return x.converted(dtype).expect("floats convert");
    }
    let whole: Vec<f32> =
        x.slice::<f32>().iter().map(|x| (x * 40.0).clamp(-100.0, 100.0)).collect();
    Tensor::new(shape, &whole).converted(dtype).expect("numbers convert")
}

pub(crate) fn texts(shape: &[usize], words: &[&str]) -> Tensor {
    let words = words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
    Tensor::from_strings(shape, words).expect("one word for each element")
}

pub(crate) fn declared(name: &str, tensor: &Tensor) -> String {
    let dims: Vec<String> = tensor.shape().iter().map(ToString::to_string).collect();
    format!("{name}: {}[{}]\n", tensor.dtype(), dims.join(", "))
}

pub(crate) fn model_of(case: &Case) -> Model {
    model_of_text(case, &case.text)
}

fn model_of_text(case: &Case, body: &str) -> Model {
    let mut text: String = case.feeds.iter().map(|(name, tensor)| declared(name, tensor)).collect();
    text.push_str(body);
    let mut graph = graph_from_text(&text);
    for output in &mut graph.outputs {
        output.value_type = None;
    }
    for (name, tensor) in &case.constants {
        graph.inputs.retain(|input| input.name != *name);
        graph.set_initializer(*name, tensor.clone());
    }
    for (attribute, text) in &case.bodies {
        let mut body = graph_from_text(text);
        body.inputs.retain(|input| case.feeds.iter().all(|(name, _)| *name != input.name));
        body.outputs.iter_mut().for_each(|output| {
            output.value_type = None;
        });
        let value = AttributeValue::from(body);
        graph.nodes[0].attributes.insert((*attribute).into(), value.into());
    }
    for (index, name, value) in &case.attributes {
        graph.nodes[*index].attributes.insert((*name).into(), value.clone().into());
    }
    // `Cast` names its type by number; `Constant` values cannot be written as text.
    for node in graph.nodes.iter_mut().filter(|node| node.is("Constant")) {
        let value = AttributeValue::from(Tensor::new(&[2], &[1.5_f32, -2.0]));
        node.attributes.insert("value".into(), value.into());
    }
    let mut model = Model { ir_version: 9, graph, ..Model::default() };
    model.opsets.insert(String::new(), case.opset);
    if let Some((domain, version)) = case.domain {
        model.graph.nodes.iter_mut().for_each(|node| node.domain = domain.into());
        model.opsets.insert(domain.into(), version);
    }
    model
}

pub(crate) fn run(runtime: &dyn Runtime, model: &Model, case: &Case) -> Vec<Tensor> {
    let feeds: Vec<(&str, &Tensor)> = case.feeds.iter().map(|(name, t)| (*name, t)).collect();
    let result = runtime.load(model, &RunOptions::default()).and_then(|mut s| s.run(&feeds));
    result.unwrap_or_else(|error| panic!("{}: {}: {error}", runtime.name(), case.text))
}

pub(crate) fn numbers_of(tensor: &Tensor) -> Vec<f64> {
    tensor.to_f64().unwrap_or_else(|| panic!("an output of {} holds no numbers", tensor.dtype()))
}

/// Largest difference over the largest finite magnitude expected.
pub(crate) fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    if expected.dtype() == DType::String {
        return if found == expected { 0.0 } else { f64::INFINITY };
    }
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

/// ONNX Runtime, which is to run the graph as it is written.
pub(crate) fn ort() -> Ort {
    let mut ort = Ort::find(Some(&ort_library())).expect("./test.sh fetches ONNX Runtime");
    ort.optimize = false;
    ort
}

pub(crate) fn check(cases: &[Case]) {
    let ort = ort();
    for case in cases {
        let model = model_of(case);
        let reference = model_of_text(case, case.equivalent.as_ref().unwrap_or(&case.text));
        let (found, expected) = (run(&Builtin, &model, case), run(&ort, &reference, case));
        assert_eq!(found.len(), expected.len(), "{}", case.text);
        for (found, expected) in found.iter().zip(&expected) {
            let shapes: Vec<_> = case.feeds.iter().map(|(_, t)| t.shape()).collect();
            let place = format!("{} on {shapes:?}", case.text);
            assert_eq!(found.dtype(), expected.dtype(), "{place}");
            assert_eq!(found.shape(), expected.shape(), "{place}");
            if case.tolerance == 0.0 && !expected.dtype().is_float() {
                assert_eq!(found, expected, "{place}");
                continue;
            }
            let worst = difference(found, expected);
            assert!(worst <= case.tolerance, "{place}: differs by {worst:e}");
        }
    }
}
