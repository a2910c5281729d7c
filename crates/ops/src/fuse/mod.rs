//! Patterns that exporters and quantizers write, recognized and put into single operators.
//!
//! Each rewrite reads a model and returns a plan, as passes do. Those of [`RUNTIME_REWRITES`] make
//! operators of the `attar` domain and are for running only; [`batch_normalization`] makes
//! standard ONNX.

pub mod attention;
mod batch_activation;
pub mod batch_normalization;
pub mod channels_last;
pub mod dead_nodes;
mod dequantized_gather;
pub mod gelu;
pub mod hard_swish;
pub mod layer_normalization;
pub mod linear;
pub mod quantize_dequantize;
pub mod quantized;
pub mod quantized_attention;
pub mod quantized_conv;
pub mod quantized_recurrent;
pub mod skip_layer_normalization;
mod smoothing;
pub mod spectrum;
mod training;
pub mod window;

use attar_graph::{GraphError, Links, Model, Node, Plan, apply};

pub use training::for_training;

use crate::{fold_branches, fold_constants, fold_shapes, fold_unpacking};

/// A named rewrite.
pub type Rewrite = (&'static str, fn(&Model) -> Plan);

/// What `builtin` applies, in order, before it runs a model.
pub const RUNTIME_REWRITES: &[Rewrite] = &[
    ("shapes", fold_shapes),
    ("unpacking", fold_unpacking),
    ("branches", fold_branches),
    ("batch-normalization", batch_normalization::plan),
    ("quantized-conv", quantized_conv::plan),
    ("q-linear-conv", quantized_conv::plan_operators),
    // What became operators of levels no longer reads the dequantized values.
    ("dead-nodes", dead_nodes::plan),
    ("quantized-epilogues", quantized_conv::plan_epilogues),
    ("quantized-matmul", quantized::plan),
    ("quantized-recurrent", quantized_recurrent::plan),
    ("quantized-attention", quantized_attention::plan),
    // Products that became integer ones no longer read the dequantized values.
    ("dead-nodes", dead_nodes::plan),
    ("quantize-dequantize", quantize_dequantize::plan),
    ("dequantized-gather", dequantized_gather::plan),
    ("constants", |model| fold_constants(model, false)),
    ("spectrum", spectrum::plan),
    ("layer-normalization", layer_normalization::plan),
    ("gelu", gelu::plan),
    // What a GELU replaced still reads its input, which would keep it from joining the product.
    ("dead-nodes", dead_nodes::plan),
    ("attention", attention::plan),
    ("bias", linear::plan_bias),
    ("activation", linear::plan_activation),
    ("hard-swish", hard_swish::plan),
    ("dead-nodes", dead_nodes::plan),
    ("window", window::plan),
    ("channels-last", channels_last::plan),
    ("skip-layer-normalization", skip_layer_normalization::plan),
    ("smoothing", smoothing::plan),
    ("dead-nodes", dead_nodes::plan),
    ("quantized-levels", quantized::plan_levels),
    ("quantized-normalization", quantized::plan_normalization),
    ("dead-nodes", dead_nodes::plan),
    ("quantized-shared", quantized::plan_shared),
];

/// A model as `builtin` runs it: every rewrite applied.
///
/// # Errors
/// A graph that is not well formed.
pub fn fuse_for_runtime(model: &mut Model) -> Result<(), GraphError> {
    for (_, plan) in RUNTIME_REWRITES {
        let plan = plan(model);
        apply(&mut model.graph, &plan)?;
    }
    Ok(())
}

/// The producer of `value`, if it is `op_type` of the ONNX domain.
fn producer<'a>(links: &Links<'a>, value: &str, op_type: &str) -> Option<(usize, &'a Node)> {
    links.producer(value).filter(|(_, node)| node.is(op_type))
}

/// The single f32 of a constant.
fn scalar(links: &Links, value: &str) -> Option<f32> {
    let tensor = links.constant(value).filter(|tensor| tensor.element_count() == 1)?;
    Some(tensor.to_f32()?[0])
}

/// A node with two inputs, one of them a constant scalar: the other input, and the scalar.
fn with_scalar<'a>(links: &Links<'a>, node: &'a Node) -> Option<(&'a str, f32)> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    match (scalar(links, a), scalar(links, b)) {
        (None, Some(b)) => Some((a, b)),
        (Some(a), None) if !node.is("Div") && !node.is("Sub") => Some((b, a)),
        _ => None,
    }
}
