use attar_graph::testing::graph_from_text;
use attar_graph::{Model, Value, apply};
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::{DType, Tensor};

use crate::{Calibration, Context, PassError, QuantizationRecord, pass_entry};

/// The batches of the input `x`.
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

fn model(text: &str) -> Model {
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { ir_version: 8, opsets, graph: graph_from_text(text), ..Model::default() }
}

type Quantized = (Model, Vec<String>, Option<QuantizationRecord>);

fn quantized(model: &Model, settings: &str, batches: Vec<Tensor>) -> Result<Quantized, PassError> {
    let batches = Batches(batches);
    let context = Context { calibration: Some(&batches), ..Context::new(&Builtin) };
    let settings = settings.parse().expect("it is TOML");
    let pass = pass_entry("quantize.static")?.build(settings)?;
    let (plan, record) = pass.plan_recorded(model, &context)?;
    let mut result = model.clone();
    apply(&mut result.graph, &plan)?;
    Ok((result, plan.remarks, record))
}

fn run(model: &Model, x: &Tensor) -> Vec<f32> {
    let mut session = Builtin.load(model, &RunOptions::default()).unwrap();
    session.run(&[("x", x)]).unwrap()[0].values::<f32>().into_owned()
}

/// Values between -1 and 1, the same in every run.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn product(inputs: usize, outputs: usize) -> Model {
    let mut model =
        model(&format!("x: f32[n, {inputs}]\nw = [0]\nb = [0]\na = MatMul(x, w)\ny = Add(a, b)"));
    let graph = &mut model.graph;
    graph.set_initializer("w", Tensor::new(&[inputs, outputs], &numbers(inputs * outputs, 1)));
    graph.set_initializer("b", Tensor::new(&[outputs], &numbers(outputs, 2)));
    model
}

fn rows(count: usize, width: usize, seed: u32) -> Tensor {
    Tensor::new(&[count, width], &numbers(count * width, seed))
}

fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    let lost: f64 = found.iter().zip(wanted).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (lost / wanted.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

#[test]
fn every_rounding_and_scale_keeps_the_output_near() {
    let original = product(24, 8);
    let x = rows(64, 24, 3);
    let wanted = run(&original, &x);
    let error = |settings: &str| {
        let (model, _, _) = quantized(&original, settings, vec![x.clone()]).unwrap();
        relative_error(&run(&model, &x), &wanted)
    };
    let nearest = error("rounding = \"nearest\"\nbias_correction = false");
    for settings in [
        "rounding = \"gptq\"",
        "rounding = \"descent\"",
        "weight_scale = \"mse\"",
        "observer = \"entropy\"",
        "smooth = \"off\"",
    ] {
        let found = error(settings);
        // Noise of 8-bit inputs, which no rounding of weights takes away, is most of either.
        assert!(found < 1.3 * nearest && found < 0.02, "{settings}: {found}, nearest {nearest}");
    }
}

#[test]
fn a_channel_of_outliers_is_smoothed_and_the_others_keep_their_digits() {
    let original = product(16, 8);
    let mut values = numbers(64 * 16, 3);
    values.iter_mut().step_by(16).for_each(|x| *x *= 100.0);
    let x = Tensor::new(&[64, 16], &values);
    let error = |settings: &str| {
        let (model, _, record) = quantized(&original, settings, vec![x.clone()]).unwrap();
        // Without the outlier's own share: what the other channels add up to.
        let mut plain = values.clone();
        plain.iter_mut().step_by(16).for_each(|x| *x = 0.0);
        let plain = Tensor::new(&[64, 16], &plain);
        let found = relative_error(&run(&model, &plain), &run(&original, &plain));
        (found, record.unwrap().ranges[0].is_smoothed)
    };
    let (smooth, is_smoothed) = error("");
    assert!(is_smoothed);
    let (rough, is_smoothed) = error("smooth = \"off\"");
    assert!(!is_smoothed);
    assert!(smooth < 0.3 * rough, "{smooth} of {rough}");
}

#[test]
fn the_record_names_the_product_that_hurts_most() {
    let original = model(
        "x: f32[n, 2]\nw = [1 0.5; 0.25 1]\nv = [100 0.3; 0.7 0.4]\na = MatMul(x, w)\n\
         r = Relu(a)\ny = MatMul(r, v)",
    );
    let (_, remarks, record) = quantized(&original, "", vec![rows(32, 2, 3)]).unwrap();
    let record = record.unwrap();
    assert_eq!(record.ranges.len(), 2);
    assert_eq!(record.products.len(), 2);
    let errors: Vec<f64> =
        record.products.iter().map(super::super::record::ProductRecord::own_error).collect();
    assert!(errors[0] >= errors[1], "{errors:?}");
    assert!(record.products.iter().all(|product| product.output_error.unwrap() < 0.05));
    let named = remarks.iter().find(|remark| remark.starts_with("relative error of outputs"));
    assert!(named.unwrap().contains(&format!("`{}`", record.products[0].node)), "{remarks:?}");
}

#[test]
fn products_stay_float_by_number_and_are_said() {
    let original = product(8, 4);
    let (model, remarks, record) =
        quantized(&original, "keep_float = 1", vec![rows(8, 8, 3)]).unwrap();
    assert_eq!(model.graph.constant("w").unwrap().dtype(), DType::F32);
    assert!(!model.graph.nodes.iter().any(|node| node.is("QuantizeLinear")));
    assert_eq!(
        record.unwrap().products[0].kept_float.as_deref(),
        Some("one of the 1 of most error")
    );
    assert!(remarks.iter().any(|remark| remark.contains("stays float")), "{remarks:?}");
}

#[test]
fn a_constant_or_zero_input_is_reproduced() {
    let original = product(8, 4);
    for value in [0.0_f32, 3.0, -1e-3, 1e-40] {
        let x = Tensor::new(&[4, 8], &[value; 32]);
        let (model, _, _) = quantized(&original, "", vec![x.clone()]).unwrap();
        let error = relative_error(&run(&model, &x), &run(&original, &x));
        assert!(error < 0.01, "{value}: {error}");
    }
}

#[test]
fn one_example_is_enough() {
    let original = product(32, 4);
    let x = rows(1, 32, 3);
    let (model, _, _) = quantized(&original, "rounding = \"descent\"", vec![x.clone()]).unwrap();
    let error = relative_error(&run(&model, &x), &run(&original, &x));
    assert!(error < 0.02, "{error}");
}

#[test]
fn a_batch_of_no_rows_changes_nothing() {
    let original = product(8, 4);
    let some = rows(16, 8, 3);
    let none = Tensor::new(&[0, 8], &[] as &[f32]);
    let alone = quantized(&original, "", vec![some.clone()]).unwrap().0;
    let both = quantized(&original, "", vec![none.clone(), some, none.clone()]).unwrap().0;
    assert_eq!(alone.graph, both.graph);
    // Nothing was seen: there is no range, and all stays as it was.
    let (model, _, record) = quantized(&original, "", vec![none]).unwrap();
    assert_eq!(model.graph, original.graph);
    assert_eq!(record, None);
}

#[test]
fn a_value_that_is_not_finite_is_named_with_its_batch() {
    let original = product(8, 4);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = numbers(16, 3);
        values[11] = bad;
        let batches = vec![rows(2, 8, 3), Tensor::new(&[2, 8], &values)];
        let error = quantized(&original, "", batches).err().unwrap();
        assert_eq!(error.to_string(), "`x` is not finite in calibration batch 1");
    }
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let mut original = product(8, 4);
    let mut values = numbers(32, 1);
    values[5] = f32::NAN;
    original.graph.set_initializer("w", Tensor::new(&[8, 4], &values));
    let error = quantized(&original, "", vec![rows(2, 8, 3)]).err().unwrap();
    assert_eq!(error.to_string(), "weight `w` holds NaN or infinity");
}

#[test]
fn feeds_of_another_width_or_name_are_errors() {
    let original = product(8, 4);
    let error = quantized(&original, "", vec![rows(2, 7, 3)]).err().unwrap();
    assert!(error.to_string().contains("`x`"), "{error}");
    let mut other = original.clone();
    other.graph.inputs[0].name = "z".into();
    other.graph.nodes[0].inputs[0] = "z".into();
    let error = quantized(&other, "", vec![rows(2, 8, 3)]).err().unwrap();
    assert!(error.to_string().contains("no input `x`"), "{error}");
}

#[test]
fn a_huge_outlier_in_one_example_leaves_the_others_their_levels() {
    let original = product(8, 4);
    let mut values = numbers(4096 * 8, 3);
    values[100] = 300.0;
    let x = rows(64, 8, 5);
    let batches = vec![Tensor::new(&[4096, 8], &values)];
    let chosen = |settings: &str| {
        let (model, _, _) = quantized(&original, settings, batches.clone()).unwrap();
        relative_error(&run(&model, &x), &run(&original, &x))
    };
    let minmax = "observer = \"minmax\"\nsmooth = \"off\"\nkeep_float = \"off\"";
    let (auto, minmax) = (chosen("keep_float = \"off\""), chosen(minmax));
    assert!(auto < 0.5 * minmax, "{auto}, minmax {minmax}");
}

#[test]
fn the_mean_that_rounding_adds_is_taken_off_the_bias() {
    // All inputs the same: each output errs by the same amount in every row.
    let original = product(64, 4);
    let x = Tensor::new(&[4, 64], &[1.0_f32; 256]);
    let error = |correction: bool| {
        // A range that ends at 1 holds the inputs exactly: what is left is the weights' error.
        let settings = format!(
            "observer = \"minmax\"\nsmooth = \"off\"\nrounding = \"nearest\"\n\
             bias_correction = {correction}"
        );
        let (model, _, _) = quantized(&original, &settings, vec![x.clone()]).unwrap();
        relative_error(&run(&model, &x), &run(&original, &x))
    };
    let (with, without) = (error(true), error(false));
    assert!(with < 0.1 * without && with < 1e-5, "{with}, without {without}");
}

/// Two heads of attention over x, [n, tokens, 16], between products.
fn attention() -> Model {
    let mut model = model(
        "x: f32[n, s, 16]
         q = MatMul(x, wq)\nq1 = Add(q, b)\nq2 = Reshape(q1, split)\nq3 = Transpose(q2, perm=0,2,1,3)
         k = MatMul(x, wk)\nk1 = Add(k, b)\nk2 = Reshape(k1, split)\nk3 = Transpose(k2, perm=0,2,3,1)
         v = MatMul(x, wv)\nv1 = Add(v, b)\nv2 = Reshape(v1, split)\nv3 = Transpose(v2, perm=0,2,1,3)
         s = MatMul(q3, k3)\np = Softmax(s, axis=-1)\nc = MatMul(p, v3)
         c1 = Transpose(c, perm=0,2,1,3)\nc2 = Reshape(c1, merge)\ny = MatMul(c2, wo)",
    );
    let graph = &mut model.graph;
    let weights = ["wq", "wk", "wv", "wo"].into_iter().zip(1..);
    let weights = weights.map(|(name, seed)| (name, Tensor::new(&[16, 16], &numbers(256, seed))));
    let others = [
        ("b", Tensor::new(&[16], &numbers(16, 9))),
        ("split", Tensor::new(&[4], &[0_i64, 0, 2, 8])),
        ("merge", Tensor::new(&[3], &[0_i64, 0, 16])),
    ];
    for (name, tensor) in weights.chain(others) {
        graph.inputs.retain(|input| input.name != name);
        graph.set_initializer(name, tensor);
    }
    model
}

#[test]
fn attention_runs_in_integers_where_its_operands_do() {
    let original = attention();
    let x = Tensor::new(&[4, 20, 16], &numbers(4 * 20 * 16, 3));
    let wanted = run(&original, &x);
    let float_error = {
        let (model, _, _) = quantized(&original, "attention = false", vec![x.clone()]).unwrap();
        relative_error(&run(&model, &x), &wanted)
    };
    // Q of no product: "auto" leaves such attention in float.
    let mut unlike = original.clone();
    let index = unlike.graph.nodes.iter().position(|node| node.outputs[0] == "q").unwrap();
    unlike.graph.nodes[index] = attar_graph::Node::new("Relu", "relu", &["x"], &["q"]);
    for (original, settings, is_quantized) in [
        (&original, "", true),
        (&original, "attention = \"auto\"", true),
        (&original, "attention = true", true),
        (&original, "attention = false", false),
        (&unlike, "", false),
        (&unlike, "attention = true", true),
    ] {
        let wanted = run(original, &x);
        let (model, _, _) = quantized(original, settings, vec![x.clone()]).unwrap();
        let count = |op_type: &str| model.graph.nodes.iter().filter(|n| n.is(op_type)).count();
        // x, and what the last product reads; Q, K and V.
        assert_eq!(count("QuantizeLinear"), if is_quantized { 5 } else { 2 }, "{settings}");
        let mut running = model.clone();
        attar_ops::fuse::fuse_for_runtime(&mut running).unwrap();
        let runs = |op_type: &str| running.graph.nodes.iter().any(|n| n.op_type == op_type);
        assert_eq!(runs("QuantizedAttention"), is_quantized, "{settings}");
        if is_quantized {
            let error = relative_error(&run(&model, &x), &wanted);
            assert!(error < 0.03 && error < 2.0 * float_error, "{error}, float {float_error}");
        }
    }
}

#[test]
fn recurrent_layers_run_in_integers_and_are_told_apart() {
    for (op, gates, settings) in
        [("LSTM", 4, ""), ("GRU", 3, ", linear_before_reset=1"), ("GRU", 3, ""), ("RNN", 1, "")]
    {
        let text = format!("x: f32[6, n, 8]\ny = {op}(x, w, r, b, hidden_size=12{settings})");
        let mut model = model(&text);
        let graph = &mut model.graph;
        for (name, shape, seed) in
            [("w", vec![1, gates * 12, 8], 1), ("r", vec![1, gates * 12, 12], 2)]
        {
            let values: Vec<f32> =
                numbers(shape.iter().product(), seed).iter().map(|w| 0.5 * w).collect();
            graph.set_initializer(name, Tensor::new(&shape, &values));
        }
        graph.set_initializer("b", Tensor::new(&[1, gates * 24], &numbers(gates * 24, 3)));
        graph.inputs.retain(|input| input.name == "x");
        let batch = |seed| Tensor::new(&[6, 4, 8], &numbers(192, seed));
        let (result, remarks, record) = quantized(&model, "", vec![batch(4), batch(5)]).unwrap();
        let remarks = remarks.join("\n");
        assert!(remarks.contains("1 recurrent layers in 8 bits"), "{remarks}");
        let product = &record.unwrap().products[0];
        assert_eq!(product.op_type, op);
        assert!(
            product.output_error.is_some_and(|error| error > 0.0 && error < 0.03),
            "{product:?}"
        );
        let (found, expected) = (run(&result, &batch(6)), run(&model, &batch(6)));
        let worst = found.iter().zip(&expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst > 0.0 && worst < 0.03, "{op}: {worst}");
        let weights = result.graph.initializers.values().map(|stored| &stored.tensor);
        assert_eq!(weights.filter(|w| w.dtype() == DType::I8 && w.rank() == 2).count(), 2);
        let (float, ..) = quantized(&model, "recurrent = false", vec![batch(4)]).unwrap();
        assert_eq!(float.graph.nodes.len(), 1);
    }
}

/// Scales and zero points of a graph, by the inputs of its `QuantizeLinear` and `DequantizeLinear`.
fn grids(model: &Model) -> Vec<(Vec<f32>, DType)> {
    let graph = &model.graph;
    let is_grid =
        |node: &&attar_graph::Node| node.is("QuantizeLinear") || node.is("DequantizeLinear");
    let nodes = graph.nodes.iter().filter(is_grid);
    let grid = |node: &attar_graph::Node| {
        let constant = |index: usize| graph.constant(&node.inputs[index]).unwrap();
        (constant(1).values::<f32>().into_owned(), constant(2).dtype())
    };
    nodes.map(grid).collect()
}

#[test]
fn sixteen_bits_are_finer_by_far() {
    let mut model = product(24, 16);
    model.opsets.insert(String::new(), 21);
    let x = Tensor::new(&[40, 24], &numbers(960, 5));
    let expected = run(&model, &x);
    let error = |settings: &str| {
        let (result, ..) = quantized(&model, settings, vec![x.clone()]).unwrap();
        (relative_error(&run(&result, &x), &expected), grids(&result))
    };
    let (eight, _) = error("bias_correction = false");
    let (wide_inputs, grids) = error("activation_bits = 16\nrounding = \"nearest\"");
    assert!(grids.iter().any(|(_, dtype)| *dtype == DType::U16), "{grids:?}");
    let (wide, grids) = error("activation_bits = 16\nweight_bits = 16");
    assert!(grids.iter().any(|(_, dtype)| *dtype == DType::I16), "{grids:?}");
    assert!(wide_inputs < 0.8 * eight && wide < 0.02 * eight, "{wide} {wide_inputs} {eight}");
    model.opsets.insert(String::new(), 17);
    let pass = pass_entry("quantize.static").unwrap();
    let opset = |settings: &str| pass.build(settings.parse().unwrap()).unwrap().opset_min();
    assert_eq!((opset("weight_bits = 16"), opset("activation_bits = 16")), (21, 21));
    assert!(opset("") < 17);
}

#[test]
fn scales_are_powers_of_two_where_hardware_shifts() {
    for settings in ["", "rounding = \"nearest\"\nsmooth = \"off\"\nsaturation = \"ignore\""] {
        let model = product(24, 16);
        let x = Tensor::new(&[40, 24], &numbers(960, 5));
        let settings = format!("scales = \"power-of-two\"\n{settings}");
        let (result, ..) = quantized(&model, &settings, vec![x.clone()]).unwrap();
        let scales: Vec<f32> = grids(&result).into_iter().flat_map(|(scales, _)| scales).collect();
        assert!(scales.len() > 17);
        assert!(scales.iter().all(|scale| scale.log2().fract() == 0.0), "{scales:?}");
        let error = relative_error(&run(&result, &x), &run(&model, &x));
        assert!(error < 0.03, "{error}");
    }
}

#[test]
fn a_given_range_is_taken_and_a_wrong_name_is_an_error() {
    let model = product(4, 2);
    let x = Tensor::new(&[4, 4], &numbers(16, 5));
    let settings = |name: &str| format!("smooth = \"off\"\nranges = {{ {name} = [-2.0, 2.0] }}");
    let (_, _, record) = quantized(&model, &settings("x"), vec![x.clone()]).unwrap();
    let range = &record.unwrap().ranges[0];
    assert_eq!((range.observer.as_str(), range.scale), ("given", 4.0 / 255.0));
    let error = quantized(&model, &settings("z"), vec![x.clone()]).unwrap_err().to_string();
    assert!(error.contains("`z`"), "{error}");
    let error = quantized(&model, "ranges = { x = [1.0, 1.0] }", vec![x]).unwrap_err().to_string();
    assert!(error.contains("1 to 1"), "{error}");
}
