use attar_graph::testing::graph_from_text;
use attar_graph::{Model, Node, Value, apply};
use attar_ops::opset::convert_opset;
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::Tensor;

use super::*;
use crate::Calibration;

struct Batches(Vec<Tensor>);

impl Calibration for Batches {
    fn for_each_batch(
        &self,
        _: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        self.0.iter().try_for_each(|x| visit(&[("x", x)]))
    }
}

/// Values between -1 and 1, the same in every run.
fn numbers(shape: &[usize], seed: u32) -> Tensor {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    let count = shape.iter().product();
    Tensor::new(shape, &(0..count).map(|_| next()).collect::<Vec<f32>>())
}

const IMAGES: &str = "x: f32[n, 3, 8, 8]
    a = Conv(x, u, b, pads=1,1,1,1)
    c = Relu(a)
    p = MaxPool(c, kernel_shape=2,2, strides=2,2)
    d = Conv(p, v, b, pads=1,1,1,1)
    e = Add(p, d)
    f = Conv(e, w, b)
    g = GlobalAveragePool(f)
    h = Flatten(g)
    y = Gemm(h, m, k)";

fn images() -> Model {
    let mut graph = graph_from_text(IMAGES);
    let weights: [(&str, &[usize]); 6] = [
        ("u", &[6, 3, 3, 3]),
        ("v", &[6, 6, 3, 3]),
        ("w", &[6, 6, 1, 1]),
        ("m", &[6, 4]),
        ("b", &[6]),
        ("k", &[4]),
    ];
    for (seed, (name, shape)) in weights.into_iter().enumerate() {
        graph.set_initializer(name, numbers(shape, seed as u32));
        graph.inputs.retain(|input| input.name != name);
    }
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { ir_version: 8, opsets, graph, ..Model::default() }
}

fn settings(text: &str) -> AwareSettings {
    let settings: AwareSettings = toml::from_str(text).unwrap();
    settings.check().unwrap();
    settings
}

fn fake(text: &str) -> Result<(Model, AwarePlan), PassError> {
    let settings = settings(text);
    let mut model = images();
    if model.opset() < settings.opset() {
        convert_opset(&mut model, settings.opset()).unwrap();
    }
    let batches = Batches(vec![numbers(&[4, 3, 8, 8], 50), numbers(&[4, 3, 8, 8], 51)]);
    let context = Context { calibration: Some(&batches), ..Context::new(&Builtin) };
    let made = plan_aware(&model, &settings, &context)?;
    apply(&mut model.graph, &made.plan)?;
    model.import_domains();
    Ok((model, made))
}

fn integers(fake: &Model, text: &str) -> Model {
    let mut model = fake.clone();
    apply(&mut model.graph, &plan_integers(fake, &settings(text)).unwrap()).unwrap();
    model.opsets.shift_remove("attar");
    model
}

/// All grids of a model, as text: what is rounded, and to which levels.
fn grids(model: &Model) -> Vec<String> {
    let is_fake = |node: &&Node| node.op_type == "FakeQuantize";
    let grid = |node: &Node| {
        if let Ok(Some(mode)) = node.text("mode") {
            return format!("{} {mode}", node.inputs[0]);
        }
        let end = |name: &str| node.int_or(name, 0).unwrap();
        format!("{} {}..{}", node.inputs[0], end("level_min"), end("level_max"))
    };
    let mut grids: Vec<String> = model.graph.nodes.iter().filter(is_fake).map(grid).collect();
    grids.sort();
    grids
}

#[test]
fn ends_keep_eight_bits_and_values_of_one_range_have_as_many() {
    let (model, _) = fake("weight_bits = 4\nactivation_bits = 3").unwrap();
    let expected = [
        "b -2147483648..2147483647",
        "c 0..7",
        "d 0..7",
        "e 0..7",
        "f 0..7",
        "g 0..255",
        "h 0..255",
        "k -2147483648..2147483647",
        "m -127..127",
        "p 0..7",
        "u -127..127",
        "v -8..7",
        "w -8..7",
        "x 0..255",
    ];
    assert_eq!(grids(&model), expected);
    let (model, _) = fake("weight_bits = \"binary\"\nends_bits = 4\nbits = { d = 2 }").unwrap();
    let found = grids(&model);
    for expected in ["u -8..7", "v -2..1", "w signs", "m -8..7", "p 0..255", "x 0..255"] {
        assert!(found.iter().any(|grid| grid == expected), "{expected}: {found:?}");
    }
}

#[test]
fn scales_learn_where_they_are_to() {
    let learning = |text: &str| fake(text).unwrap().1.scales;
    assert!(learning("scales = \"fixed\"").is_empty());
    let learned = learning("zero_points = \"learned\"");
    for name in ["u_log_scale", "x_log_scale", "x_zero"] {
        assert!(learned.iter().any(|known| known == name), "{name}: {learned:?}");
    }
    // What only moves values reads the scale of its source.
    assert!(!learned.iter().any(|name| name == "p_log_scale"), "{learned:?}");
    assert!(!learning("weight_bits = \"binary\"").iter().any(|name| name == "v_log_scale"));
}

#[test]
fn integers_compute_what_the_fake_quantization_computes() {
    for text in [
        "",
        "scales = \"fixed\"",
        "weight_bits = 4\nactivation_bits = 4",
        "weight_bits = 3\nactivation_bits = 3\nends_bits = 2",
        "weight_bits = 2",
        "weight_bits = \"ternary\"\nends_bits = \"ternary\"",
        "weight_bits = \"binary\"",
        "weight_bits = 8\nactivation_bits = 2\nends_bits = 2",
        "weight_bits = 2\nactivation_bits = 2\nends_bits = 2",
        "weight_bits = \"ternary\"\nactivation_bits = 16",
        "weight_bits = \"binary\"\nends_bits = \"binary\"\nint2 = true",
        "weight_bits = \"binary\"\nactivation_bits = 32",
        "weight_bits = 32\nbits = { d = 7 }\nactivation_bits = 8",
    ] {
        let (fake, _) = fake(text).unwrap();
        let integers = integers(&fake, text);
        assert!(integers.graph.nodes.iter().all(|node| node.domain.is_empty()), "{text}");
        let x = numbers(&[3, 3, 8, 8], 90);
        // What is shown is not fused, so that both run node by node.
        let values = fake.graph.nodes.iter().flat_map(|node| node.outputs.iter());
        let is_kept = |name: &&String| {
            integers.graph.nodes.iter().any(|node| node.outputs.contains(*name))
                && !fake.graph.is_output(name)
        };
        let observed: Vec<String> = values.filter(is_kept).cloned().collect();
        let shown = |model: &Model| {
            let options = RunOptions { observed: observed.clone(), ..RunOptions::default() };
            let mut session = Builtin.load(model, &options).unwrap();
            let mut found = BTreeMap::new();
            let outputs = session.observe(&[("x", &x)], &mut |name, tensor| {
                found.insert(name.to_string(), tensor.clone());
            });
            (found, outputs.unwrap().swap_remove(0))
        };
        let ((expected, fake_y), (found, y)) = (shown(&fake), shown(&integers));
        for (name, expected) in &expected {
            assert_eq!(expected.bytes(), found[name].bytes(), "{text}: {name}");
        }
        // The last product reads levels all the same: its sums of integers round once.
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * (1.0 + b.abs());
        assert!(y.slice::<f32>().iter().zip(fake_y.slice::<f32>()).all(near), "{text}");
        // As it is served, sums are of integers: they may round otherwise, and pass a level.
        let run = |model: &Model| {
            let mut session = Builtin.load(model, &RunOptions::default()).unwrap();
            session.run(&[("x", &x)]).unwrap().swap_remove(0)
        };
        let (expected, found) = (run(&fake), run(&integers));
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 0.05 * (1.0 + b.abs());
        let pairs = found.slice::<f32>().iter().zip(expected.slice::<f32>());
        assert!(pairs.clone().all(near), "{text}: {:?}", pairs.collect::<Vec<_>>());
    }
}

#[test]
fn a_grid_of_less_than_its_type_is_cut_off_before() {
    let text = "weight_bits = 4\nactivation_bits = 3";
    let (fake, _) = fake(text).unwrap();
    let model = integers(&fake, text);
    let clips = model.graph.nodes.iter().filter(|node| node.is("Clip"));
    let clipped: Vec<&str> = clips.map(|node| node.inputs[0].as_str()).collect();
    assert_eq!(clipped.len(), 5, "{clipped:?}");
}

#[test]
fn what_cannot_be_is_said() {
    let refused = |text: &str| toml::from_str::<AwareSettings>(text).map(|s| s.check());
    assert!(refused("weight_bits = 5").is_err());
    assert!(refused("weight_bits = \"octal\"").is_err());
    for text in ["weight_bits = 16", "activation_bits = \"ternary\"", "bits = { d = 16 }"] {
        assert!(refused(text).unwrap().unwrap_err().contains("expected one of"), "{text}");
    }
    let error = fake("bits = { nothing = 8 }").unwrap_err();
    assert_eq!(error.to_string(), "`bits` pattern `nothing` matches no product that is quantized");
    let (settings, mut model) = (settings("weight_bits = 4"), images());
    let error = plan_aware(&model, &settings, &Context::new(&Builtin)).unwrap_err();
    assert!(error.to_string().contains("of opset 17; it needs 21"), "{error}");
    convert_opset(&mut model, 21).unwrap();
    let error = plan_aware(&model, &settings, &Context::new(&Builtin)).unwrap_err();
    assert!(matches!(error, PassError::NoCalibration));
}
