use attar_graph::testing::graph_from_text;
use attar_graph::{Model, Value, apply};
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::{DType, Tensor};

use crate::{Calibration, Context, PassError, pass_entry};

/// One batch whose numbers reach `0`.
struct Reaching(f32);

impl Calibration for Reaching {
    fn for_each_batch(
        &self,
        _: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        visit(&[("x", &Tensor::new(&[1, 2], &[self.0, -0.5]))])
    }
}

const GRAPH: &str = "x: f32[1, 2]\nw = [0.5 1.25; -2 0.75]\na = MatMul(x, w)\nb = Relu(a)\n\
                     c = Mul(b, b)\ns = Softmax(c)\ny = MatMul(s, w)";

fn converted(text: &str, settings: &str, reach: f32) -> (Model, Vec<String>) {
    let opsets = [(String::new(), 17)].into_iter().collect();
    let mut model = Model { opsets, graph: graph_from_text(text), ..Model::default() };
    let pass = pass_entry("quantize.half").unwrap().build(settings.parse().unwrap()).unwrap();
    let data = Reaching(reach);
    let context = Context { calibration: Some(&data), ..Context::new(&Builtin) };
    let plan = pass.plan(&model, &context).unwrap();
    apply(&mut model.graph, &plan).unwrap();
    (model, plan.remarks)
}

fn run(model: &Model) -> Vec<f32> {
    let mut session = Builtin.load(model, &RunOptions::default()).unwrap();
    let x = Tensor::new(&[1, 2], &[1.5_f32, -0.5]);
    session.run(&[("x", &x)]).unwrap()[0].values::<f32>().into_owned()
}

fn casts(model: &Model) -> usize {
    model.graph.nodes.iter().filter(|node| node.is("Cast")).count()
}

#[test]
fn the_whole_graph_is_half_between_two_casts() {
    let (model, remarks) = converted(GRAPH, "compute = true", 2.0);
    assert_eq!(casts(&model), 2, "{:?}", model.graph.nodes);
    assert!(remarks.iter().any(|remark| remark == "5 of 5 nodes compute in f16"), "{remarks:?}");
    assert_eq!(model.graph.outputs[0].name, "y");
    assert!(model.graph.constants().all(|(_, tensor)| tensor.dtype() == DType::F16));
    let (original, _) = converted(GRAPH, "", 2.0);
    let worst = run(&original).into_iter().zip(run(&model)).map(|(a, b)| (a - b).abs());
    // Half precision has 11 bits.
    assert!(worst.fold(0.0, f32::max) < 4e-3);
}

#[test]
fn what_would_overflow_stays_f32() {
    // 300² does not fit with a margin of 2; nor do its makers and readers touch half values there.
    let (model, remarks) = converted(GRAPH, "compute = true", 300.0);
    let named = remarks.iter().any(|remark| remark.contains("stay f32") && remark.contains("`c`"));
    assert!(named, "{remarks:?}");
    let square = model.graph.nodes.iter().find(|node| node.is("Mul")).unwrap();
    assert_eq!(square.outputs[0], "c");
    assert!(run(&model).iter().all(|x| x.is_finite()));
    // bf16 reaches as far as f32.
    let (model, remarks) = converted(GRAPH, "compute = true\nformat = \"bf16\"", 300.0);
    assert!(!remarks.iter().any(|remark| remark.contains("stay f32")), "{remarks:?}");
    assert_eq!(casts(&model), 2);
}

#[test]
fn a_constant_that_does_not_fit_keeps_its_node_in_f32_and_islands_are_left() {
    let text = "x: f32[1, 2]\nm = [-3.4e38]\na = Div(x, m)\nb = Neg(a)\nc = Exp(b)\nd = Neg(c)\n\
                y = Div(d, m)";
    let (model, _) = converted(text, "compute = true", 0.0);
    assert_eq!(casts(&model), 2, "three nodes between: {:?}", model.graph.nodes);
    let text = "x: f32[1, 2]\nm = [-3.4e38]\na = Div(x, m)\nb = Neg(a)\ny = Div(b, m)";
    let (model, _) = converted(text, "compute = true", 0.0);
    assert_eq!(casts(&model), 0, "one node between");
}

#[test]
fn stored_weights_are_computed_with_in_f32() {
    let large = Tensor::new(&[2, 256], &vec![0.1_f32; 512]);
    let mut graph = graph_from_text("x: f32[1, 2]\ny = MatMul(x, w)");
    graph.set_initializer("w", large);
    graph.inputs.retain(|input| input.name == "x");
    let opsets = [(String::new(), 17)].into_iter().collect();
    let mut model = Model { opsets, graph, ..Model::default() };
    let pass = pass_entry("quantize.half").unwrap().build(toml::Table::new()).unwrap();
    let plan = pass.plan(&model, &Context::new(&Builtin)).unwrap();
    apply(&mut model.graph, &plan).unwrap();
    assert_eq!(model.graph.constant("w_half").unwrap().dtype(), DType::F16);
    assert!(model.graph.constant("w").is_none());
    let rounded = attar_tensor::Tensor::scalar(0.1_f32).converted(DType::F16).unwrap();
    let expected = rounded.to_f32().unwrap()[0];
    assert!((run(&model)[0] - expected).abs() < 1e-6);
}
