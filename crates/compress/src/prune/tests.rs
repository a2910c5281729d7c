use attar_graph::testing::graph_from_text;
use attar_graph::{Model, apply};
use attar_runtime::Builtin;
use attar_tensor::Tensor;
use attar_train::Rng;

use crate::{Context, PassError, pass_entry};

fn model(text: &str) -> Model {
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { ir_version: 8, opsets, graph: graph_from_text(text), ..Model::default() }
}

fn pruned(model: &Model, pass: &str, settings: &str) -> Result<Model, PassError> {
    let pass = pass_entry(pass)?.build(settings.parse().unwrap())?;
    let context = Context::new(&Builtin);
    let mut model = model.clone();
    let plan = pass.plan(&model, &context)?;
    apply(&mut model.graph, &plan).unwrap();
    Ok(model)
}

fn values(model: &Model, name: &str) -> Vec<f32> {
    model.graph.constant(name).unwrap().values::<f32>().into_owned()
}

fn zeros(model: &Model, name: &str) -> usize {
    values(model, name).iter().filter(|&&w| w == 0.0).count()
}

const SQUARE: &str = "x: f32[n, 3]
    w = [0.1 0.2 0.3; 0.4 0.5 0.6; 0.7 0.8 0.9]
    y = MatMul(x, w)";

#[test]
fn alpha_removes_what_is_relatively_unimportant() {
    // Σ|w| = 4.5: up to 0.45 goes.
    let found = pruned(&model(SQUARE), "prune.threshold", "alpha = 0.1").unwrap();
    assert_eq!(values(&found, "w"), [0.0, 0.0, 0.0, 0.0, 0.5, 0.6, 0.7, 0.8, 0.9]);
    let settings = "alpha = 0.2\nimportance = \"l1\"";
    let found = pruned(&model(SQUARE), "prune.threshold", settings).unwrap();
    assert_eq!(zeros(&found, "w"), 2, "the bound itself goes too");
    let error = pruned(&model(SQUARE), "prune.threshold", "alpha = -1.0").err().unwrap();
    assert!(error.to_string().contains("a number from 0"), "{error}");
}

/// A matrix of 16 by 24 and a convolution of 8 by 8 by 3 by 3, drawn.
fn drawn() -> Model {
    let mut model = model("h = Conv(z, k)\nr = Relu(h)\ny = MatMul(x, w)");
    let mut rng = Rng::new(&[5]);
    for (name, shape) in [("w", vec![16, 24]), ("k", vec![8, 8, 3, 3])] {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| rng.normal() as f32).collect();
        model.graph.set_initializer(name, Tensor::new(&shape, &values));
        model.graph.inputs.retain(|input| input.name != name);
    }
    model
}

#[test]
fn each_scope_reaches_its_sparsity_exactly() {
    let model = drawn();
    let found = |scope: &str| {
        let settings = format!("sparsity = 0.75\nscope = \"{scope}\"");
        pruned(&model, "prune.unstructured", &settings).unwrap()
    };
    for scope in ["tensor", "output"] {
        let found = found(scope);
        assert_eq!([zeros(&found, "w"), zeros(&found, "k")], [288, 432], "{scope}");
    }
    for output in 0..24 {
        let values = values(&found("output"), "w");
        assert_eq!((0..16).filter(|input| values[input * 24 + output] == 0.0).count(), 12);
    }
    for scope in ["global", "normalized"] {
        let found = found(scope);
        assert_eq!(zeros(&found, "w") + zeros(&found, "k"), 720, "{scope}");
    }
}

#[test]
fn ranked_together_a_tensor_of_small_weights_goes_first_unless_normalized() {
    let model = model(
        "x: f32[n, 2]\nv = [1 2; 3 4]\nw = [0.1 0.2; 0.3 0.4]\nh = MatMul(x, v)\ny = MatMul(h, w)",
    );
    let found = |scope: &str| {
        let settings = format!("sparsity = 0.5\nscope = \"{scope}\"");
        let found = pruned(&model, "prune.unstructured", &settings).unwrap();
        [zeros(&found, "v"), zeros(&found, "w")]
    };
    assert_eq!(found("global"), [0, 4]);
    assert_eq!(found("normalized"), [2, 2]);
}

#[test]
fn of_every_m_inputs_n_stay() {
    let model = drawn();
    for (pattern, kept, of) in [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)] {
        let settings = format!("pattern = \"{pattern}\"");
        let found = pruned(&model, "prune.unstructured", &settings).unwrap();
        let (w, k) = (values(&found, "w"), values(&found, "k"));
        let count = |places: &mut dyn Iterator<Item = f32>| places.filter(|&w| w != 0.0).count();
        for first in (0..16).step_by(of) {
            for output in 0..24 {
                let mut group = (first..first + of).map(|input| w[input * 24 + output]);
                assert_eq!(count(&mut group), kept, "{pattern}");
            }
        }
        for output in 0..8 {
            for (first, tap) in (0..8).step_by(of).flat_map(|first| (0..9).map(move |t| (first, t)))
            {
                let mut group = (first..first + of).map(|input| k[(output * 8 + input) * 9 + tap]);
                assert_eq!(count(&mut group), kept, "{pattern}");
            }
        }
    }
}

#[test]
fn whole_blocks_go() {
    let model = drawn();
    for (pattern, outputs, inputs) in [("1x4", 1, 4), ("4x1", 4, 1), ("8x1", 8, 1), ("2x8", 2, 8)] {
        let settings = format!("sparsity = 0.5\npattern = \"{pattern}\"");
        let found = pruned(&model, "prune.unstructured", &settings).unwrap();
        assert_eq!([zeros(&found, "w"), zeros(&found, "k")], [192, 288], "{pattern}");
        let w = values(&found, "w");
        for (i, o) in
            (0..16).step_by(inputs).flat_map(|i| (0..24).step_by(outputs).map(move |o| (i, o)))
        {
            let block = (i..i + inputs).flat_map(|i| (o..o + outputs).map(move |o| (i, o)));
            let zeros = block.filter(|(i, o)| w[i * 24 + o] == 0.0).count();
            assert!(zeros == 0 || zeros == outputs * inputs, "{pattern}: {zeros}");
        }
    }
}

#[test]
fn settings_that_contradict_each_other_are_errors() {
    let error = |settings: &str| {
        pruned(&drawn(), "prune.unstructured", settings).err().unwrap().to_string()
    };
    assert!(error("sparsity = 0.4\npattern = \"2:4\"").contains("makes a sparsity of 0.5"));
    assert!(error("scope = \"output\"\npattern = \"1x4\"").contains("for single weights"));
    assert!(error("importance = \"size\"").contains("there are l1, l2"));
    assert!(error("sensitivity = \"there.json\"").contains("`there.json` was not read"));
    assert!(error("importance = \"activation\"").contains("needs calibration data"));
}

#[test]
fn a_weight_without_a_whole_group_is_left_and_told() {
    let model = model("x: f32[n, 3]\nw = [1 2; 3 4; 5 6]\ny = MatMul(x, w)");
    let pass = pass_entry("prune.unstructured").unwrap();
    let pass = pass.build("pattern = \"2:4\"".parse().unwrap()).unwrap();
    let context = Context::new(&Builtin);
    let plan = pass.plan(&model, &context).unwrap();
    assert!(plan.is_empty());
    assert_eq!(plan.remarks, ["`w` is left as it is: 2:4 does not fit it"]);
}

#[test]
fn sensitivities_say_which_tensor_gives_most() {
    let tensor = |name: &str, count: usize, error: f64| {
        format!(
            "[[sensitivity.tensors]]\nname = \"{name}\"\nnode = \"\"\nop_type = \"\"\nblock = \"\"
            element_count = {count}
            levels = [{{ sparsity = 0.9, error = {{ value = {error}, low = 0.0, high = 1.0 }} }}]\n"
        )
    };
    let (w, k) = (tensor("w", 384, 0.9), tensor("k", 576, 0.1));
    let found = pruned(&drawn(), "prune.unstructured", &format!("sparsity = 0.5\n{w}{k}")).unwrap();
    assert_eq!([zeros(&found, "w"), zeros(&found, "k")], [0, 480]);
    let error = pruned(&drawn(), "prune.unstructured", &format!("sparsity = 0.5\n{w}"));
    assert!(error.err().unwrap().to_string().contains("of `k` [576] is not in it"));
}
