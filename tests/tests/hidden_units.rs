//! Hidden units of the recurrent networks that `attar new` makes: one cut is one zeroed, and half of
//! them can go.
#![allow(clippy::unwrap_used)] // a test may fail where it stands

use attar_compress::testing::{check_groups, outputs};
use attar_compress::{Context, pass_entry};
use attar_evaluate::{Shape, synthetic_feeds};
use attar_graph::{Model, apply};
use attar_import::new_model;
use attar_runtime::Builtin;
use attar_tensor::Tensor;

/// A model and what it is fed.
struct Case {
    model: Model,
    feeds: Vec<(String, Tensor)>,
}

fn new(architecture: &str, options: &[(&str, &str)]) -> Case {
    let small = [("vocabulary", "40"), ("embedding", "6"), ("hidden", "10")];
    let options = small.iter().chain(options).map(|&(key, value)| (key.into(), value.into()));
    let model = new_model(architecture, &options.collect::<Vec<_>>()).unwrap().model;
    let shape = Shape { batch: 3, length: 7 };
    let mut feeds = synthetic_feeds(&model.graph.inputs, shape).unwrap();
    for (name, tensor) in &mut feeds {
        let count = tensor.element_count();
        let values = tensor.slice_mut::<i64>();
        match name.as_str() {
            // The last text is shorter.
            "attention_mask" => values[count - 3..].fill(0),
            _ => values.iter_mut().enumerate().for_each(|(i, id)| *id = (i * 7 % 40) as i64),
        }
    }
    Case { model, feeds }
}

fn settings(layers: &str, bidirectional: &str, pooling: &str) -> [(&'static str, String); 3] {
    [
        ("layers", layers.into()),
        ("bidirectional", bidirectional.into()),
        ("pooling", pooling.into()),
    ]
}

#[test]
fn a_hidden_unit_cut_is_a_hidden_unit_zeroed() {
    for architecture in ["lstm", "gru"] {
        for layers in ["1", "2"] {
            for bidirectional in ["false", "true"] {
                for pooling in ["last", "mean", "max"] {
                    let options = settings(layers, bidirectional, pooling);
                    let options = options.each_ref().map(|(key, value)| (*key, value.as_str()));
                    let what = format!("{architecture} {options:?}");
                    let Case { model, feeds } = new(architecture, &options);
                    let (found, dead) = check_groups(&what, &model, &feeds, &[0.0, 0.4, 1.0]);
                    assert!(dead.is_empty(), "{what}: channels without effect: {dead:?}");
                    let units = found.iter().filter(|group| *group == "recurrent 10").count();
                    assert_eq!(units.to_string(), layers, "{what}: {found:?}");
                }
            }
        }
    }
}

#[test]
fn half_of_the_hidden_units_go() {
    for architecture in ["lstm", "gru"] {
        let Case { mut model, feeds } =
            new(architecture, &[("layers", "2"), ("bidirectional", "true")]);
        let pass = pass_entry("prune.channels").unwrap();
        let pass = pass.build("sparsity = 0.5".parse().unwrap()).unwrap();
        let context = Context::new(&Builtin);
        let prepared = pass.prepare(&model).unwrap();
        apply(&mut model.graph, &prepared).unwrap();
        let plan = pass.plan(&model, &context).unwrap();
        assert_eq!(plan.remarks[0], "recurrent: 10 of 20 cut, in 2 groups");
        apply(&mut model.graph, &plan).unwrap();
        assert_eq!(hidden_sizes(&model), [5, 5]);
        assert_eq!(outputs(&model, &feeds)[0].shape()[0], 3);
    }
}

fn hidden_sizes(model: &Model) -> Vec<i64> {
    let nodes = model.graph.nodes.iter();
    nodes.filter_map(|node| node.int("hidden_size").unwrap()).collect()
}
