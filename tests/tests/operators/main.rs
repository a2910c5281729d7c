//! Every operator on `builtin` against ONNX Runtime, over many shapes: a file per family.

mod case;
mod control;
mod convolutions;
mod elementwise;
mod images;
mod products;
mod quantized;
mod recurrent;
mod rows;
mod shaping;

use std::collections::BTreeMap;

use attar_graph::Model;
use attar_ops::OPERATORS;
use attar_runtime::Builtin;

use crate::case::{Case, check, model_of, run};

fn all_cases() -> Vec<Case> {
    [
        control::cases(),
        convolutions::cases(),
        elementwise::cases(),
        shaping::cases(),
        products::cases(),
        images::cases(),
        rows::cases(),
        quantized::cases(),
        recurrent::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn operators_with_bodies_equal_onnx_runtime() {
    check(&control::cases());
}

#[test]
fn convolutions_equal_onnx_runtime() {
    check(&convolutions::cases());
}

#[test]
fn elementwise_operators_equal_onnx_runtime() {
    check(&elementwise::cases());
}

#[test]
fn shaping_operators_equal_onnx_runtime() {
    check(&shaping::cases());
}

#[test]
fn products_equal_onnx_runtime() {
    check(&products::cases());
}

#[test]
fn image_operators_equal_onnx_runtime() {
    check(&images::cases());
}

#[test]
fn row_operators_equal_onnx_runtime() {
    check(&rows::cases());
}

#[test]
fn quantizing_operators_equal_onnx_runtime() {
    check(&quantized::cases());
}

#[test]
fn recurrent_layers_equal_onnx_runtime() {
    check(&recurrent::cases());
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
