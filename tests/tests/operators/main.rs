//! Every operator on `builtin` against ONNX Runtime, over many shapes: a file per family.

mod arithmetic;
mod attention;
mod case;
mod control;
mod convolutions;
mod einsum;
mod elementwise;
mod functions;
mod gradients;
mod images;
mod indexing;
mod integers;
mod microsoft;
mod normalizing;
mod older;
mod pooling;
mod products;
mod quantized;
mod recurrent;
mod reductions;
mod resampling;
mod rows;
mod selections;
mod sequences;
mod shaping;
mod signal;
mod text;
mod types;

use std::collections::BTreeMap;

use attar_graph::Model;
use attar_ops::OPERATORS;
use attar_runtime::Builtin;

use crate::case::{Case, check, difference, model_of, ort, run};

fn all_cases() -> Vec<Case> {
    [
        control::cases(),
        einsum::cases(),
        indexing::cases(),
        sequences::cases(),
        signal::cases(),
        text::cases(),
        convolutions::cases(),
        elementwise::cases(),
        arithmetic::cases(),
        functions::cases(),
        reductions::cases(),
        selections::cases(),
        types::cases(),
        shaping::cases(),
        products::cases(),
        images::cases(),
        normalizing::cases(),
        pooling::cases(),
        resampling::cases(),
        rows::cases(),
        quantized::cases(),
        recurrent::cases(),
        attention::cases(),
        integers::cases(),
        microsoft::cases(),
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
fn einsum_equals_onnx_runtime() {
    check(&einsum::cases());
}

#[test]
fn indexing_operators_equal_onnx_runtime() {
    check(&indexing::cases());
}

#[test]
fn sequence_operators_equal_onnx_runtime() {
    check(&sequences::cases());
}

#[test]
fn signal_operators_equal_onnx_runtime() {
    check(&signal::cases());
}

#[test]
fn string_operators_equal_onnx_runtime() {
    check(&text::cases());
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
fn arithmetic_equals_onnx_runtime_in_every_type() {
    check(&arithmetic::cases());
}

#[test]
fn functions_equal_onnx_runtime_in_every_type() {
    check(&functions::cases());
}

#[test]
fn reductions_equal_onnx_runtime_in_every_type() {
    check(&reductions::cases());
}

#[test]
fn operators_along_axes_and_random_ones_equal_onnx_runtime() {
    check(&selections::cases());
}

#[test]
fn casts_equal_those_of_onnx_runtime() {
    check(&types::cases());
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
fn normalizations_equal_onnx_runtime() {
    check(&normalizing::cases());
}

#[test]
fn pooling_equals_onnx_runtime() {
    check(&pooling::cases());
}

#[test]
fn resampling_equals_onnx_runtime() {
    check(&resampling::cases());
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
fn attention_equals_onnx_runtime() {
    check(&attention::cases());
}

#[test]
fn integer_operators_equal_onnx_runtime() {
    check(&integers::cases());
}

#[test]
fn optimized_operators_equal_onnx_runtime() {
    check(&microsoft::cases());
}

#[test]
fn operators_of_older_opsets_equal_onnx_runtime() {
    check(&older::cases());
}

#[test]
fn a_converted_model_gives_what_the_original_gave_on_onnx_runtime() {
    let ort = ort();
    for case in older::cases() {
        let model = model_of(&case);
        let mut converted = model.clone();
        attar_ops::opset::convert_opset(&mut converted, 21).unwrap();
        assert_eq!(converted.opset(), 21);
        let (before, after) = (run(&ort, &model, &case), run(&ort, &converted, &case));
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before.shape(), after.shape(), "{}", case.text);
            assert!(difference(after, before) <= case.tolerance, "{}", case.text);
        }
    }
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
            // Of what is taken out of a sequence nothing is known.
            let Some(fact) = facts.get(&output.name) else {
                assert!(case.text.contains("Sequence"), "{}", case.text);
                continue;
            };
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

#[test]
fn gradients_equal_finite_differences() {
    let agreed = gradients::agreed(&[all_cases(), gradients::cases()].concat());
    // Some cases alone do not show every gradient.
    if std::env::var_os("ATTAR_GRADIENTS").is_none() {
        let problems = gradients::problems(&agreed);
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }
}
